// @ts-check
/**
 * Undo and redo over states that are never changed, only replaced.
 * @template T
 */
export class History {
  /** @type {T[]} */
  #past = [];
  /** @type {T[]} */
  #future = [];
  #present;

  /** @param {T} present */
  constructor(present) {
    this.#present = present;
  }

  get present() {
    return this.#present;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** @param {T} next */
  push(next) {
    this.#past.push(this.#present);
    this.#future = [];
    this.#present = next;
  }

  undo() {
    this.#step(this.#past, this.#future);
  }

  redo() {
    this.#step(this.#future, this.#past);
  }

  /**
   * @param {T[]} from
   * @param {T[]} to
   */
  #step(from, to) {
    const state = from.pop();
    if (state === undefined) return;
    to.push(this.#present);
    this.#present = state;
  }
}

// @ts-check
/** What is said to all, screen readers among them, in one line: messages at once, captions when they have settled. */

/** How long a caption stays the same before it is said, in milliseconds. */
const QUIET_MS = 700;

export class Speech {
  #settling = 0;
  #waiting = "";

  /** @param {HTMLElement} line a live region */
  constructor(line) {
    this.line = line;
  }

  /** @param {string} message */
  say(message) {
    clearTimeout(this.#settling);
    this.#waiting = "";
    if (this.line.textContent !== message) this.line.textContent = message;
  }

  /**
   * Say a caption, unless another one takes its place soon.
   * @param {string} text
   */
  settle(text) {
    if (text === this.#waiting) return;
    clearTimeout(this.#settling);
    this.#waiting = text;
    this.#settling = setTimeout(() => this.say(text), QUIET_MS);
  }
}

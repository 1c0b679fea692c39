// @ts-check
/**
 * The caption under the cursor, and of a shape while it is drawn: asked for one at a time, the latest place wins.
 *
 * @typedef {import("./api.js").Caption} Caption
 * @typedef {import("./regions.js").Region} Region
 */
import { Latest } from "./api.js";
import { toStage } from "./geometry.js";
import { placeBeside } from "./labels.js";
import { bounds } from "./regions.js";

export class Hover {
  /** What the bubble's caption is of. @type {Region | null} */
  #shown = null;
  #latest = new Latest(() => this.#ask());

  /**
   * @param {HTMLElement} bubble
   * @param {object} parts
   * @param {import("./session.js").Session} parts.session
   * @param {import("./tools.js").Drafting} parts.drafting
   * @param {import("./input.js").Input} parts.input
   * @param {import("./view.js").View} parts.view
   * @param {(text: string) => void} parts.onCaption
   */
  constructor(bubble, { session, drafting, input, view, onCaption }) {
    this.bubble = bubble;
    this.session = session;
    this.drafting = drafting;
    this.input = input;
    this.view = view;
    this.onCaption = onCaption;
  }

  /** Return the draft, or what is under the cursor; null if there is neither. */
  region() {
    const { cursor } = this.input;
    if (!this.drafting.isEmpty) return this.drafting.region(cursor);
    return cursor && { kind: "point", x: Math.round(cursor.x), y: Math.round(cursor.y) };
  }

  /** Follow the cursor and the draft. */
  update() {
    if (!this.input.cursor) this.hide();
    this.#place();
    if (this.session.isEncoded && this.input.cursor) this.#latest.ask(true);
  }

  hide() {
    this.bubble.hidden = true;
    this.#shown = null;
  }

  /**
   * @param {Region} region
   * @param {Caption | undefined} caption of the region
   */
  show(region, caption) {
    if (!caption || !this.input.cursor) return this.hide();
    this.#shown = region;
    this.bubble.textContent = caption.error ?? caption.text;
    this.bubble.hidden = false;
    this.#place();
    if (!caption.error) this.onCaption(caption.text);
  }

  async #ask() {
    const region = this.region();
    if (region && this.session.isEncoded) this.show(region, await this.session.probe(region));
  }

  /** Put the bubble beside the cursor, clear of what is drawn. */
  #place() {
    const { cursor } = this.input;
    const { picture } = this.session;
    if (!cursor || !picture || !this.#shown) return;
    const size = { width: this.bubble.offsetWidth, height: this.bubble.offsetHeight };
    const stage = { left: 4, top: 4, right: this.view.size.width - 4, bottom: this.view.size.height - 4 };
    const drawn = this.view.toStage(bounds(this.#shown, picture));
    const { x, y } = placeBeside(toStage(cursor, this.view.placement), size, drawn, stage);
    this.bubble.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  }
}

// @ts-check
/**
 * Mouse, touch and keys on the image: each becomes presses, moves and releases of the draft, and a cursor.
 *
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Size} Size
 */
import { clamp, isOnImage, toImage } from "./geometry.js";
import { TOOLS } from "./tools.js";

/** Steps of the crosshair, as parts of the image's longer side. */
const STEP = 1 / 100;
const LARGE_STEP = 1 / 20;

/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Input {
  /** Where the pointer or the crosshair is, in the image. @type {Point | null} */
  cursor = null;
  /** Whether the cursor is the crosshair of the keyboard. */
  isCrosshair = false;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {object} parts
   * @param {import("./tools.js").Drafting} parts.drafting
   * @param {import("./view.js").View} parts.view
   * @param {() => Size | null} parts.image
   * @param {() => void} parts.onCursor
   * @param {() => void} parts.onDelete
   */
  constructor(canvas, { drafting, view, image, onCursor, onDelete }) {
    this.canvas = canvas;
    this.drafting = drafting;
    this.view = view;
    this.image = image;
    this.onCursor = onCursor;
    this.onDelete = onDelete;
    this.#listen();
  }

  /** Forget where the cursor is, as the image is another. */
  reset() {
    this.cursor = null;
    this.isCrosshair = false;
  }

  #listen() {
    const { canvas, drafting } = this;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => drafting.cancel());
    canvas.addEventListener("pointerleave", () => this.#leave());
    canvas.addEventListener("touchstart", (event) => this.#touch(event), { passive: false });
    canvas.addEventListener("touchmove", (event) => this.#touch(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#leave());
  }

  /**
   * Leave two fingers to the browser, which zooms. Of one it must make no gesture: a quick stroke would be a fling, which
   * swallows the tap that follows it.
   * @param {TouchEvent} event
   */
  #touch(event) {
    if (event.touches.length > 1) this.drafting.cancel();
    else if (event.type === "touchmove" && event.cancelable) event.preventDefault();
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (!this.image() || !event.isPrimary || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#point(this.#at(event), false);
    this.drafting.press(this.#at(event));
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (!this.image() || !event.isPrimary) return;
    const events = event.getCoalescedEvents();
    for (const each of events.length ? events : [event]) this.drafting.move(this.#at(each));
    this.#point(this.#at(event), false);
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (!this.image() || !event.isPrimary) return;
    this.drafting.release(this.#at(event));
    if (event.pointerType === "touch") this.#leave();
  }

  #leave() {
    if (this.drafting.isOpen && !this.isCrosshair) return;
    this.#point(null, false);
  }

  /**
   * @param {PointerEvent} event
   * @returns {Point}
   */
  #at({ clientX, clientY }) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return toImage({ x: clientX - left, y: clientY - top }, this.view.placement);
  }

  /**
   * @param {Point | null} point
   * @param {boolean} isCrosshair
   */
  #point(point, isCrosshair) {
    const image = this.image();
    const isThere = point && image && (this.drafting.isOpen || isOnImage(point, image));
    this.cursor = isThere ? clamp(point, image) : null;
    this.isCrosshair = isCrosshair && this.cursor !== null;
    this.onCursor();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const image = this.image();
    if (!image || event.altKey || event.metaKey) return;
    const isHandled = ARROWS[event.key] ? this.#step(event, image) : this.#command(event, image);
    if (isHandled) event.preventDefault();
  }

  /**
   * @param {KeyboardEvent} event
   * @param {Size} image
   */
  #step({ key, shiftKey, ctrlKey }, image) {
    const side = Math.max(image.width, image.height);
    const step = ctrlKey ? 1 : Math.max(1, Math.round(side * (shiftKey ? LARGE_STEP : STEP)));
    const [dx, dy] = ARROWS[key];
    const { x, y } = this.#crosshair(image);
    const point = clamp({ x: x + step * dx, y: y + step * dy }, image);
    this.drafting.move(point);
    this.#point(point, true);
    return true;
  }

  /** @param {Size} image */
  #crosshair(image) {
    return this.cursor ?? { x: Math.round(image.width / 2), y: Math.round(image.height / 2) };
  }

  /**
   * @param {KeyboardEvent} event
   * @param {Size} image
   * @returns {boolean} whether the key means something
   */
  #command({ key, ctrlKey }, image) {
    if (ctrlKey) return false;
    const point = this.#crosshair(image);
    if (key === " ") this.#pressAt(point);
    else if (key === "Enter") this.#enterAt(point);
    else if (key === "Escape") this.drafting.cancel();
    else if (key === "Delete" || key === "Backspace") this.onDelete();
    else return this.#chooseTool(key);
    return true;
  }

  /** @param {Point} point */
  #pressAt(point) {
    const isEnd = this.drafting.isOpen;
    if (!isEnd) this.drafting.press(point);
    if (isEnd || !this.drafting.tool.hasLength) this.drafting.release(point);
    this.#point(point, true);
  }

  /** @param {Point} point */
  #enterAt(point) {
    if (this.drafting.canFinish) this.drafting.finish();
    else this.#pressAt(point);
  }

  /** @param {string} key */
  #chooseTool(key) {
    const tool = TOOLS.find((each) => each.key === key.toLowerCase());
    if (tool) this.drafting.choose(tool);
    return tool !== undefined;
  }
}

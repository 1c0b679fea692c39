// @ts-check
/**
 * The live camera: one frame in flight; when its captions are there, the latest frame is next.
 *
 * @typedef {import("./images.js").Picture} Picture
 * @typedef {{rate: number, latency: number}} Pace  frames a second, and milliseconds from a frame to its captions
 */
import { Camera } from "./camera.js";

/** The share of the latest frame in the pace that is shown. */
const SMOOTHING = 0.2;

export class Live {
  /** @type {Pace | null} */
  pace = null;
  #lastTime = 0;

  /**
   * @param {HTMLVideoElement} video
   * @param {object} parts
   * @param {import("./session.js").Session} parts.session
   * @param {import("./hover.js").Hover} parts.hover
   * @param {() => void} parts.onFrame called for each frame that the screen shows
   * @param {(error: Error) => void} parts.onError
   */
  constructor(video, { session, hover, onFrame, onError }) {
    this.video = video;
    this.camera = new Camera(video);
    this.session = session;
    this.hover = hover;
    this.onFrame = onFrame;
    this.onError = onError;
  }

  get isOn() {
    return this.camera.isOn;
  }

  /**
   * Turn a camera on, and describe what it shows until it is turned off.
   * @param {string} deviceId "" for the browser's choice
   */
  async start(deviceId) {
    await this.camera.start(deviceId, () => this.stop());
    this.pace = null;
    this.#show();
    this.#describe();
  }

  /** Turn the camera off. The last frame stays as the image, with the regions on it. */
  async stop() {
    if (!this.camera.isOn) return;
    const frame = await this.camera.grab(this.session.limits.pixels);
    this.camera.stop();
    this.pace = null;
    await this.session.replace(frame);
  }

  /** Turn the camera off, as another image takes its place. */
  end() {
    this.camera.stop();
    this.pace = null;
  }

  /** Show the camera's frames as they come. */
  async #show() {
    while (this.isOn) {
      this.onFrame();
      await new Promise(requestAnimationFrame);
    }
  }

  async #describe() {
    try {
      while (this.isOn) await this.#describeFrame();
    } catch (error) {
      this.end();
      this.onError(/** @type {Error} */ (error));
    }
  }

  async #describeFrame() {
    await this.camera.nextFrame();
    if (!this.isOn) return;
    const start = performance.now();
    const frame = await this.camera.grab(this.session.limits.pixels);
    if (!this.#isSameSize(frame)) await this.session.open({ ...frame, source: this.video, file: null });
    const probed = this.hover.region();
    const caption = await this.session.describeFrame(/** @type {Blob} */ (frame.file), probed);
    if (!this.isOn) return;
    if (probed) this.hover.show(probed, caption);
    this.#measure(performance.now() - start);
  }

  /** @param {Picture} frame */
  #isSameSize({ width, height }) {
    const { picture } = this.session;
    return picture?.source === this.video && picture.width === width && picture.height === height;
  }

  /** @param {number} latency of one frame, in milliseconds */
  #measure(latency) {
    const before = this.pace?.latency ?? latency;
    const smooth = before + SMOOTHING * (latency - before);
    const now = performance.now();
    const between = this.#lastTime ? now - this.#lastTime : latency;
    const rate = 1000 / between;
    this.#lastTime = now;
    this.pace = { latency: smooth, rate: this.pace ? this.pace.rate + SMOOTHING * (rate - this.pace.rate) : rate };
    this.session.onChange();
  }
}

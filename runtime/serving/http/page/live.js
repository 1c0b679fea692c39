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
  /** What ends when a camera is turned off, or another one on. */
  #run = new AbortController();
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
    this.end();
    await this.camera.start(deviceId, () => this.stop());
    this.#run = new AbortController();
    this.#show(this.#run.signal);
    this.#describe(this.#run.signal);
  }

  /** Turn the camera off. The last frame stays as the image, with the regions on it. */
  async stop() {
    if (!this.isOn) return;
    try {
      const frame = await this.camera.grab(this.session.limits.pixels);
      this.end();
      await this.session.replace(frame);
    } catch (error) {
      this.end();
      this.onError(/** @type {Error} */ (error));
    }
  }

  /** Turn the camera off, as another image takes its place. */
  end() {
    this.#run.abort();
    this.camera.stop();
    this.pace = null;
  }

  /**
   * Show the camera's frames as they come.
   * @param {AbortSignal} run
   */
  async #show(run) {
    while (!run.aborted) {
      this.onFrame();
      await new Promise(requestAnimationFrame);
    }
  }

  /** @param {AbortSignal} run */
  async #describe(run) {
    try {
      while (!run.aborted) await this.#describeFrame(run);
    } catch (error) {
      if (run.aborted) return;
      this.end();
      this.onError(/** @type {Error} */ (error));
    }
  }

  /** @param {AbortSignal} run */
  async #describeFrame(run) {
    await this.camera.nextFrame();
    if (run.aborted) return;
    const start = performance.now();
    const frame = await this.camera.grab(this.session.limits.pixels);
    if (run.aborted) return;
    if (!this.#isSameSize(frame)) await this.session.open({ ...frame, source: this.video, file: null });
    const probed = this.hover.region();
    const caption = await this.session.describeFrame(/** @type {Blob} */ (frame.file), probed);
    if (run.aborted) return;
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

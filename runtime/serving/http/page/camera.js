// @ts-check
/** The camera: a stream in a video element, one frame of it at a time. */
import { within } from "./geometry.js";
import { asFile } from "./images.js";

const WANTED = { width: { ideal: 1280 }, height: { ideal: 720 } };

/** @type {Record<string, string>} */
const REASONS = {
  NotAllowedError: "The camera is not allowed: allow it for this page in the browser.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
  OverconstrainedError: "That camera is no longer there.",
};

export class Camera {
  /** @type {MediaStream | null} */
  #stream = null;

  /** @param {HTMLVideoElement} video */
  constructor(video) {
    this.video = video;
  }

  get isOn() {
    return this.#stream !== null;
  }

  /** The id of the camera that is on. */
  get deviceId() {
    return this.#stream?.getVideoTracks()[0].getSettings().deviceId ?? "";
  }

  /**
   * Turn a camera on, in the place of the one that is on.
   * @param {string} deviceId "" for the browser's choice
   * @param {() => void} onEnd called when the camera ends by itself
   */
  async start(deviceId, onEnd) {
    this.stop();
    if (!navigator.mediaDevices) throw new Error("The browser gives cameras to pages of localhost or https only.");
    const video = deviceId ? { ...WANTED, deviceId: { exact: deviceId } } : WANTED;
    const stream = await navigator.mediaDevices.getUserMedia({ video }).catch((error) => {
      throw new Error(REASONS[error.name] ?? `The camera cannot be opened: ${error.message}`);
    });
    this.#stream = stream;
    stream.getVideoTracks()[0].addEventListener("ended", onEnd);
    this.video.srcObject = stream;
    await this.video.play();
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.video.srcObject = null;
  }

  /** @returns {Promise<{id: string, label: string}[]>} the cameras that can be chosen */
  async list() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices
      .filter((device) => device.kind === "videoinput")
      .map(({ deviceId, label }, index) => ({ id: deviceId, label: label || `Camera ${index + 1}` }));
  }

  /** @returns {Promise<void>} when the next frame is there */
  nextFrame() {
    return new Promise((resolve) => this.video.requestVideoFrameCallback(() => resolve()));
  }

  /**
   * Return the frame that is shown.
   * @param {number} maxPixels
   * @returns {Promise<import("./images.js").Picture>}
   */
  async grab(maxPixels) {
    const source = await createImageBitmap(this.video);
    const size = within(source, maxPixels);
    return { name: "camera.jpg", source, file: await asFile(source, size), resizedTo: null, note: "", ...size };
  }
}

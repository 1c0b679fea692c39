// @ts-check
/**
 * Images: opened by the browser, and made small enough for the service.
 *
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {object} Picture
 * @property {string} name of its file
 * @property {number} width of what is sent, whose pixels are the coordinates of regions
 * @property {number} height
 * @property {CanvasImageSource | null} source what is drawn
 * @property {Blob | null} file what is sent; null of a live camera, whose frames are sent one by one
 * @property {Size | null} resizedTo its size, if that is not the file's own
 * @property {string} note what was done to it before it is sent
 */
import { within } from "./geometry.js";

const JPEG_QUALITY = 0.92;

/**
 * Return the picture of a file within the service's limits, scaled down to them if it must be.
 * @param {Blob} file
 * @param {string} name
 * @param {{pixels: number, bytes: number}} limits
 * @returns {Promise<Picture>}
 */
export async function openPicture(file, name, limits) {
  const source = await createImageBitmap(file).catch(() => {
    throw new Error(`${name}: not an image that this browser can open.`);
  });
  let size = within(source, limits.pixels);
  let sent = file;
  if (size.width < source.width || file.size > limits.bytes) sent = await asFile(source, size);
  while (sent.size > limits.bytes && size.width * size.height > 1) {
    size = within(size, (size.width * size.height) / 2);
    sent = await asFile(source, size);
  }
  const resizedTo = size.width < source.width ? size : null;
  return { name, source, file: sent, resizedTo, note: noteOf(source, resizedTo, sent !== file), ...size };
}

/**
 * @param {Size} source
 * @param {Size | null} resizedTo
 * @param {boolean} isEncoded
 */
function noteOf({ width, height }, resizedTo, isEncoded) {
  if (resizedTo) return `, made smaller from ${width} × ${height}, which is more than the service takes`;
  return isEncoded ? ", sent as JPEG: the file is larger than the service takes" : "";
}

/**
 * Return an image as JPEG in a size.
 * @param {ImageBitmap} bitmap
 * @param {Size} size
 * @returns {Promise<Blob>}
 */
export async function asFile(bitmap, { width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: JPEG_QUALITY });
}

// @ts-check
/**
 * Where texts stand on the stage, so that all of them can be read. Pure functions.
 *
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Rectangle} Rectangle
 * @typedef {import("./geometry.js").Size} Size
 */
import { overlap } from "./geometry.js";

/** Between a label and what it stands beside, in CSS pixels. */
const GAP = 4;
/** From the cursor to the caption beside it, which a finger or an arrow must not cover. */
const CURSOR_GAP = 18;

/**
 * Return the lines of a text that are at most ``width`` long; a word that is longer has a line of its own.
 * @param {string} text
 * @param {number} width
 * @param {(text: string) => number} measure
 * @returns {string[]}
 */
export function wrap(text, width, measure) {
  /** @type {string[]} */
  const lines = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const longer = lines.length ? `${lines[lines.length - 1]} ${word}` : word;
    if (lines.length && measure(longer) <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

/**
 * Return the top left corner of each label: inside ``bounds``, beside its region, and clear of the labels before it.
 * @param {{size: Size, region: Rectangle}[]} labels
 * @param {Rectangle} bounds
 * @returns {Point[]}
 */
export function placeLabels(labels, bounds) {
  /** @type {Rectangle[]} */
  const taken = [];
  return labels.map(({ size, region }) => {
    const corner = best(besideRegion(size, region), size, bounds, taken);
    taken.push(rectangle(corner, size));
    return corner;
  });
}

/**
 * Return the top left corner of the caption beside the cursor: inside ``bounds``, clear of the cursor and, if there is
 * room, of what is drawn.
 * @param {Point} cursor
 * @param {Size} size
 * @param {Rectangle} drawn
 * @param {Rectangle} bounds
 * @returns {Point}
 */
export function placeBeside(cursor, size, drawn, bounds) {
  const point = { left: cursor.x, top: cursor.y, right: cursor.x, bottom: cursor.y };
  const finger = grown(point, CURSOR_GAP - 1);
  const candidates = [...around(size, point, CURSOR_GAP), ...around(size, drawn, CURSOR_GAP)];
  return best(candidates, size, bounds, [finger, drawn]);
}

/**
 * Return the corner where a text covers least of what is taken; of several, the first.
 * @param {Point[]} candidates
 * @param {Size} size
 * @param {Rectangle} bounds
 * @param {Rectangle[]} taken
 */
function best(candidates, size, bounds, taken) {
  const corners = candidates.map((corner) => moveInside(corner, size, bounds));
  const covered = corners.map((corner) => {
    const place = rectangle(corner, size);
    return taken.reduce((sum, other) => sum + overlap(place, other), 0);
  });
  return corners[covered.indexOf(Math.min(...covered))];
}

/**
 * Return corners beside a region in the order of preference: above it, below it, within it, then farther from it.
 * @param {Size} size
 * @param {Rectangle} region
 */
function besideRegion({ width, height }, region) {
  const steps = [0, 1, 2, 3, 4, 5, 6].map((step) => step * (height + GAP));
  const columns = [region.left, region.right - width];
  const rows = steps.flatMap((step) => [
    region.top - GAP - height - step,
    region.bottom + GAP + step,
    region.top + GAP + step,
  ]);
  const sides = steps.flatMap((step) => [
    { x: region.right + GAP, y: region.top + step },
    { x: region.left - GAP - width, y: region.top + step },
  ]);
  return [...rows.flatMap((y) => columns.map((x) => ({ x, y }))), ...sides];
}

/**
 * Return the corners of a text to the lower right of a rectangle, then at its other corners.
 * @param {Size} size
 * @param {Rectangle} rectangle
 * @param {number} gap
 */
function around({ width, height }, { left, top, right, bottom }, gap) {
  const [before, above] = [left - gap - width, top - gap - height];
  const [after, below] = [right + gap, bottom + gap];
  return [
    { x: after, y: below },
    { x: before, y: below },
    { x: after, y: above },
    { x: before, y: above },
  ];
}

/**
 * @param {Point} corner
 * @param {Size} size
 * @param {Rectangle} bounds
 * @returns {Point}
 */
function moveInside(corner, { width, height }, bounds) {
  return {
    x: Math.max(bounds.left, Math.min(corner.x, bounds.right - width)),
    y: Math.max(bounds.top, Math.min(corner.y, bounds.bottom - height)),
  };
}

/**
 * @param {Point} corner
 * @param {Size} size
 * @returns {Rectangle}
 */
function rectangle({ x, y }, { width, height }) {
  return { left: x, top: y, right: x + width, bottom: y + height };
}

/**
 * @param {Rectangle} rectangle
 * @param {number} by
 */
function grown({ left, top, right, bottom }, by) {
  return { left: left - by, top: top - by, right: right + by, bottom: bottom + by };
}

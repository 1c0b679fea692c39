// @ts-check
/**
 * Geometry of the stage: where the image lies on it, and distances between points and lines. Pure functions.
 *
 * Image coordinates are pixels of the original image, stage coordinates are CSS pixels from the stage's top left corner.
 *
 * @typedef {{x: number, y: number}} Point
 * @typedef {{left: number, top: number, right: number, bottom: number}} Rectangle
 * @typedef {{width: number, height: number}} Size
 * @typedef {{scale: number, left: number, top: number}} Placement  stage = image * scale + (left, top)
 */

/**
 * Return where an image lies on a stage: as large as it fits, in the middle.
 * @param {Size} image
 * @param {Size} stage
 * @returns {Placement}
 */
export function fit(image, stage) {
  const scale = Math.min(stage.width / image.width, stage.height / image.height);
  return {
    scale,
    left: (stage.width - image.width * scale) / 2,
    top: (stage.height - image.height * scale) / 2,
  };
}

/**
 * @param {Point} point on the stage
 * @param {Placement} placement
 * @returns {Point} in the image, which it may lie outside of
 */
export function toImage(point, placement) {
  return { x: (point.x - placement.left) / placement.scale, y: (point.y - placement.top) / placement.scale };
}

/**
 * @param {Point} point in the image
 * @param {Placement} placement
 * @returns {Point} on the stage
 */
export function toStage(point, placement) {
  return { x: point.x * placement.scale + placement.left, y: point.y * placement.scale + placement.top };
}

/**
 * Return the size of a canvas's bitmap, which has a pixel for each of the screen's.
 * @param {Size} stage
 * @param {number} pixelRatio device pixels of one CSS pixel
 * @returns {Size}
 */
export function bitmapSize(stage, pixelRatio) {
  return { width: Math.round(stage.width * pixelRatio), height: Math.round(stage.height * pixelRatio) };
}

/**
 * Return the size of an image within a limit of pixels, with its aspect ratio.
 * @param {Size} image
 * @param {number} maxPixels
 * @returns {Size} whole pixels
 */
export function within(image, maxPixels) {
  const factor = Math.min(1, Math.sqrt(maxPixels / (image.width * image.height)));
  return {
    width: Math.max(1, Math.floor(image.width * factor)),
    height: Math.max(1, Math.floor(image.height * factor)),
  };
}

/**
 * Return the point moved onto the image, if it lies outside.
 * @param {Point} point
 * @param {Size} image
 * @returns {Point}
 */
export function clamp(point, image) {
  return { x: Math.min(Math.max(point.x, 0), image.width), y: Math.min(Math.max(point.y, 0), image.height) };
}

/**
 * @param {Point} point
 * @param {Size} image
 */
export function isOnImage(point, image) {
  return point.x >= 0 && point.y >= 0 && point.x <= image.width && point.y <= image.height;
}

/**
 * @param {Point} a
 * @param {Point} b
 */
export function distance(a, b) {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

/**
 * Return the distance from a point to the nearest point of a line from ``start`` to ``end``.
 * @param {Point} point
 * @param {Point} start
 * @param {Point} end
 */
export function distanceToSegment(point, start, end) {
  const [dx, dy] = [end.x - start.x, end.y - start.y];
  const length = dx * dx + dy * dy;
  const along = length === 0 ? 0 : ((point.x - start.x) * dx + (point.y - start.y) * dy) / length;
  const share = Math.min(Math.max(along, 0), 1);
  return Math.hypot(point.x - start.x - share * dx, point.y - start.y - share * dy);
}

/**
 * Return the distance from a point to the nearest point of a line through points; of one point, to it.
 * @param {Point} point
 * @param {Point[]} line at least one point
 */
export function distanceToLine(point, line) {
  if (line.length === 1) return distance(point, line[0]);
  const distances = line.slice(1).map((end, index) => distanceToSegment(point, line[index], end));
  return Math.min(...distances);
}

/**
 * Return whether a point lies inside a closed polygon; where the polygon crosses itself, by the even-odd rule.
 * @param {Point} point
 * @param {Point[]} polygon
 */
export function isInside(point, polygon) {
  let inside = false;
  polygon.forEach((end, index) => {
    const start = polygon.at(index - 1) ?? end;
    const isCrossed = start.y > point.y !== end.y > point.y;
    if (isCrossed && point.x < start.x + ((point.y - start.y) / (end.y - start.y)) * (end.x - start.x)) inside = !inside;
  });
  return inside;
}

/**
 * Return the rectangle around two corners, in whichever order they were set.
 * @param {Point} a
 * @param {Point} b
 * @returns {Rectangle}
 */
export function between(a, b) {
  return {
    left: Math.min(a.x, b.x),
    top: Math.min(a.y, b.y),
    right: Math.max(a.x, b.x),
    bottom: Math.max(a.y, b.y),
  };
}

/**
 * Return the smallest rectangle around points.
 * @param {Point[]} points at least one
 * @returns {Rectangle}
 */
export function boundsOf(points) {
  const bounds = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (const { x, y } of points) {
    bounds.left = Math.min(bounds.left, x);
    bounds.top = Math.min(bounds.top, y);
    bounds.right = Math.max(bounds.right, x);
    bounds.bottom = Math.max(bounds.bottom, y);
  }
  return bounds;
}

/**
 * Return how many square units two rectangles share.
 * @param {Rectangle} a
 * @param {Rectangle} b
 */
export function overlap(a, b) {
  const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return Math.max(width, 0) * Math.max(height, 0);
}

/**
 * Return a line without the points that lie within ``tolerance`` of it (Ramer, Douglas and Peucker).
 * @param {Point[]} line
 * @param {number} tolerance
 * @returns {Point[]}
 */
export function simplify(line, tolerance) {
  if (line.length < 3) return line.length === 2 && distance(line[0], line[1]) <= tolerance ? [line[0]] : line;
  const [start, end] = [line[0], line[line.length - 1]];
  const { index, away } = farthest(line, start, end);
  if (away <= tolerance) return distance(start, end) <= tolerance ? [start] : [start, end];
  const before = simplify(line.slice(0, index + 1), tolerance);
  const after = simplify(line.slice(index), tolerance);
  return [...before.slice(0, -1), ...after];
}

/**
 * @param {Point[]} line
 * @param {Point} start
 * @param {Point} end
 */
function farthest(line, start, end) {
  let [index, away] = [0, -1];
  for (let candidate = 1; candidate < line.length - 1; candidate += 1) {
    const gap = distanceToSegment(line[candidate], start, end);
    if (gap > away) [index, away] = [candidate, gap];
  }
  return { index, away };
}

/**
 * Return the points from one point (left out) to another (included), no two of them farther apart than ``step``.
 * @param {Point} start
 * @param {Point} end
 * @param {number} step
 * @returns {Point[]}
 */
export function inSteps(start, end, step) {
  const count = Math.max(1, Math.ceil(distance(start, end) / step));
  return Array.from({ length: count }, (_, index) => {
    const share = (index + 1) / count;
    return { x: start.x + (end.x - start.x) * share, y: start.y + (end.y - start.y) * share };
  });
}

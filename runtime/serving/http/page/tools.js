// @ts-check
/**
 * Drawing tools, and the one machine that turns presses, moves and releases of any pointer or key into regions.
 *
 * A draft is a list of strokes. A tool says how a stroke grows, what remains of it when it ends, whether the region is
 * then done, and which region the strokes are. A new tool is one entry of `TOOLS`.
 *
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./regions.js").Region} Region
 *
 * @typedef {object} Scale what lengths on the screen are in image pixels
 * @property {number} step between the points of a path
 * @property {number} tolerance what is nearer than this was meant to be the same place
 * @property {number} brush the brush's radius
 *
 * @typedef {object} Tool
 * @property {string} name
 * @property {string} label
 * @property {string} icon path of an icon of 24 x 24
 * @property {string} key
 * @property {string} hint
 * @property {boolean} hasLength whether keys begin and end a stroke; else one press is a stroke
 * @property {(stroke: Point[], point: Point, scale: Scale) => Point[]} extend
 * @property {(stroke: Point[], scale: Scale) => Point[] | null} settle null if nothing was drawn
 * @property {(strokes: Point[][], scale: Scale) => boolean} isDone
 * @property {(strokes: Point[][], image: Size, scale: Scale) => Region | null} region
 */
import { between, boundsOf, clamp, distance, inSteps, isOnImage, simplify } from "./geometry.js";
import { paint, runLengths } from "./masks.js";

/** @type {Tool[]} */
export const TOOLS = [
  {
    name: "select",
    label: "Select",
    key: "v",
    icon: "M6 3l12 9-5.5 1L16 20l-3 1-3-7-4 4z",
    hint: "Press a region to select it. Delete removes it.",
    hasLength: false,
    extend: (stroke) => stroke,
    settle: () => null,
    isDone: always,
    region: () => null,
  },
  {
    name: "box",
    label: "Box",
    key: "b",
    icon: "M4 5h16v14H4z",
    hint: "Drag from corner to corner. With keys: Space begins, arrows move, Space ends.",
    hasLength: true,
    extend: toCorner,
    settle: unlessClick,
    isDone: always,
    region: (strokes) => boxesOf(strokes)[0] ?? null,
  },
  {
    name: "boxes",
    label: "Box set",
    key: "s",
    icon: "M3 4h10v9H3zM15 14h6v6h-6z",
    hint: "Drag several boxes that share one caption, then Done or Enter.",
    hasLength: true,
    extend: toCorner,
    settle: unlessClick,
    isDone: never,
    region: (strokes) => orNull(boxesOf(strokes), 1, (boxes) => ({ kind: "box_set", boxes })),
  },
  {
    name: "polygon",
    label: "Polygon",
    key: "p",
    icon: "M12 3l9 7-4 11H7L3 10z",
    hint: "Press for each corner, or drag around a thing. Done, Enter or a double click closes it.",
    hasLength: false,
    extend: alongPath,
    settle: (stroke, { tolerance }) => simplify(stroke, tolerance / 4),
    isDone: isClosed,
    region: (strokes, _image, { tolerance }) =>
      orNull(polygonOf(strokes, tolerance), 3, (points) => ({ kind: "polygon", points: points.map(asPair) })),
  },
  {
    name: "brush",
    label: "Brush",
    key: "m",
    icon: "M20 3c-5 2-9 6-11 10l2 2c4-2 8-6 10-11zM8 14c-3 0-4 3-5 6 3 1 7 0 7-4z",
    hint: "Paint a mask in one or more strokes, then Done or Enter.",
    hasLength: true,
    extend: alongPath,
    settle: (stroke) => stroke,
    isDone: never,
    region: maskOf,
  },
  {
    name: "trace",
    label: "Trace",
    key: "t",
    icon: "M3 17c3-9 6-9 8-4s5 5 10-7",
    hint: "Draw a line over a thing, as with a pen. With keys: Space begins, arrows move, Space ends.",
    hasLength: true,
    extend: alongPath,
    settle: unlessClick,
    isDone: always,
    region: (strokes) =>
      orNull(distinct(strokes.flat()), 2, (points) => ({ kind: "trace", points: points.map(asPair) })),
  },
  {
    name: "point",
    label: "Point",
    key: "o",
    icon: "M12 2v6M12 16v6M2 12h6M16 12h6M12 11.5v1",
    hint: "Press a place. With keys: arrows move, Space sets the point.",
    hasLength: false,
    extend: (stroke) => stroke,
    settle: (stroke) => stroke,
    isDone: always,
    region: (strokes) => orNull(strokes.flat().map(rounded), 1, ([point]) => ({ kind: "point", ...point })),
  },
];

/** The draft of one region: what was pressed, moved and released so far. */
export class Drafting {
  tool = TOOLS[1];
  /** @type {Point[][]} */
  strokes = [];
  /** Whether the last stroke is being drawn. */
  isOpen = false;

  /**
   * @param {object} options
   * @param {() => Size} options.image
   * @param {() => Scale} options.scale
   * @param {(region: Region) => void} options.onRegion
   * @param {(point: Point) => void} options.onPick called for a press that draws nothing
   * @param {() => void} options.onChange
   */
  constructor({ image, scale, onRegion, onPick, onChange }) {
    this.image = image;
    this.scale = scale;
    this.onRegion = onRegion;
    this.onPick = onPick;
    this.onChange = onChange;
  }

  get isEmpty() {
    return this.strokes.length === 0;
  }

  /** Whether `finish` would make a region of strokes that have ended. */
  get canFinish() {
    return !this.isOpen && this.region() !== null;
  }

  /**
   * Return the region so far; null if there is too little of it.
   * @param {Point | null} [cursor] where the next corner of a polygon would be
   * @returns {Region | null}
   */
  region(cursor) {
    const isPreview = cursor && !this.isOpen && this.tool.name === "polygon" && !this.isEmpty;
    return this.tool.region(isPreview ? [...this.strokes, [cursor]] : this.strokes, this.image(), this.scale());
  }

  /** @param {Tool} tool */
  choose(tool) {
    this.cancel();
    this.tool = tool;
    this.onChange();
  }

  /** @param {Point} point in the image; a press outside it begins nothing */
  press(point) {
    if (this.isOpen || !isOnImage(point, this.image())) return;
    this.strokes.push([point]);
    this.isOpen = true;
    this.onChange();
  }

  /** @param {Point} point */
  move(point) {
    if (!this.isOpen) return;
    const last = this.strokes.length - 1;
    this.strokes[last] = this.tool.extend(this.strokes[last], clamp(point, this.image()), this.scale());
    this.onChange();
  }

  /** @param {Point} point */
  release(point) {
    if (!this.isOpen) return;
    this.move(point);
    this.isOpen = false;
    const settled = this.tool.settle(/** @type {Point[]} */ (this.strokes.pop()), this.scale());
    if (settled) this.strokes.push(settled);
    if (!settled && this.isEmpty) this.onPick(point);
    else if (this.tool.isDone(this.strokes, this.scale())) this.finish();
    this.onChange();
  }

  /** Make the region of the strokes so far, if they are enough. */
  finish() {
    const region = this.region();
    if (region === null) return;
    this.cancel();
    this.onRegion(region);
  }

  /** Drop the last stroke. */
  undo() {
    this.isOpen = false;
    this.strokes.pop();
    this.onChange();
  }

  /** Drop what was drawn. */
  cancel() {
    this.strokes = [];
    this.isOpen = false;
    this.onChange();
  }
}

function always() {
  return true;
}

function never() {
  return false;
}

/**
 * @param {Point[]} stroke
 * @param {Point} point
 */
function toCorner(stroke, point) {
  return [stroke[0], point];
}

/**
 * @param {Point[]} stroke
 * @param {Point} point
 * @param {Scale} scale
 */
function alongPath(stroke, point, { step }) {
  const last = stroke[stroke.length - 1];
  if (distance(last, point) >= step / 4) stroke.push(...inSteps(last, point, step));
  return stroke;
}

/**
 * @param {Point[]} stroke
 * @param {Scale} scale
 */
function unlessClick(stroke, { tolerance }) {
  const { left, top, right, bottom } = boundsOf(stroke);
  return Math.max(right - left, bottom - top) > tolerance / 4 ? stroke : null;
}

/**
 * @param {Point[][]} strokes
 * @returns {Region[]}
 */
function boxesOf(strokes) {
  return strokes
    .filter((stroke) => stroke.length === 2)
    .map(([start, end]) => between(rounded(start), rounded(end)))
    .filter(({ left, top, right, bottom }) => left < right && top < bottom)
    .map(({ left, top, right, bottom }) => ({ kind: "box", xyxy: [left, top, right, bottom] }));
}

/**
 * @param {Point[][]} strokes
 * @param {number} tolerance
 */
function polygonOf(strokes, tolerance) {
  const points = distinct(strokes.flat());
  const isBackAtFirst = points.length > 3 && distance(points[0], points[points.length - 1]) <= tolerance;
  return isBackAtFirst ? points.slice(0, -1) : points;
}

/**
 * Return whether a polygon's last press was a drag around a thing, at its first corner, or twice at its last one.
 * @param {Point[][]} strokes
 * @param {Scale} scale
 */
function isClosed(strokes, { tolerance }) {
  if (strokes[strokes.length - 1].length > 2) return true;
  const points = strokes.flat();
  if (points.length < 4) return false;
  const [first, before, last] = [points[0], ...points.slice(-2)];
  return distance(first, last) <= tolerance || distance(before, last) <= tolerance / 4;
}

/**
 * @param {Point[][]} strokes
 * @param {Size} image
 * @param {Scale} scale
 * @returns {Region | null}
 */
function maskOf(strokes, image, { brush }) {
  if (strokes.length === 0) return null;
  const grid = paint(strokes, brush, image);
  return grid.cells.includes(1)
    ? { kind: "mask", size: [grid.rows, grid.columns], counts: runLengths(grid) }
    : null;
}

/**
 * Return whole pixels, without points that are the one before them.
 * @param {Point[]} points
 */
function distinct(points) {
  return points
    .map(rounded)
    .filter((point, index, all) => index === 0 || distance(point, all[index - 1]) > 0);
}

/** @param {Point} point */
function rounded({ x, y }) {
  return { x: Math.round(x), y: Math.round(y) };
}

/**
 * @param {Point} point
 * @returns {[number, number]}
 */
function asPair({ x, y }) {
  return [x, y];
}

/**
 * @template T
 * @param {T[]} parts
 * @param {number} least
 * @param {(parts: T[]) => Region} make
 * @returns {Region | null}
 */
function orNull(parts, least, make) {
  return parts.length >= least ? make(parts) : null;
}

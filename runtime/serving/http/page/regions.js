// @ts-check
/**
 * Kinds of regions: their shape on the image, and their text as JSON and as Python. Pure functions.
 *
 * A region is held as the API takes it, but for its pool, which the page's settings give to all regions of a kind.
 *
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Rectangle} Rectangle
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./masks.js").Grid} Grid
 * @typedef {{kind: string, [key: string]: any}} Region
 * @typedef {{areas?: Point[][], lines?: Point[][], dots?: Point[], grid?: Grid}} Shape
 * @typedef {{mode: string, beams: number, pools: Record<string, string>}} Settings
 *
 * @typedef {object} Kind
 * @property {string} title
 * @property {(region: Region) => Shape} shape
 * @property {string} [pooledAs] which of `POOLS` it takes
 * @property {(region: Region, pool: string) => Region} [withPool] by default, the pool is a key of the region
 * @property {(region: Region) => string} python
 * @property {string} name what the Python text imports
 */
import { boundsOf, distance, distanceToLine, isInside } from "./geometry.js";
import { covers, fromRunLengths, gridBounds } from "./masks.js";

/** What each group of kinds can be pooled by; the first is the default. @type {Record<string, string[]>} */
export const POOLS = {
  box: ["mean", "gaussian", "attention"],
  trace: ["count", "attention"],
  whole_image: ["cls", "mean", "gaussian", "attention"],
};

/** @type {Record<string, Kind>} */
export const KINDS = {
  whole_image: {
    title: "Whole image",
    name: "WholeImage",
    pooledAs: "whole_image",
    shape: () => ({}),
    python: (region) => `WholeImage(${poolArguments(region, false)})`,
  },
  box: {
    title: "Box",
    name: "Box",
    pooledAs: "box",
    shape: (region) => ({ areas: [corners(region.xyxy)] }),
    python: (region) => `Box(${region.xyxy.join(", ")}${poolArguments(region, true)})`,
  },
  box_set: {
    title: "Set of boxes",
    name: "BoxSet",
    pooledAs: "box",
    shape: (region) => ({ areas: region.boxes.map((/** @type {Region} */ box) => corners(box.xyxy)) }),
    withPool: (region, pool) => ({
      ...region,
      boxes: region.boxes.map((/** @type {Region} */ box) => ({ ...box, pool })),
    }),
    python: (region) => `BoxSet([${region.boxes.map(corneredTuple).join(", ")}]${poolArguments(region.boxes[0], true)})`,
  },
  polygon: {
    title: "Polygon",
    name: "Polygon",
    shape: (region) => ({ areas: [toPoints(region.points)] }),
    python: (region) => `Polygon([${tuples(region.points)}])`,
  },
  mask: {
    title: "Mask",
    name: "from_dict",
    shape: (region) => ({ grid: gridOf(region) }),
    python: (region) => `from_dict(${pythonValue(region)})`,
  },
  trace: {
    title: "Trace",
    name: "Trace",
    pooledAs: "trace",
    shape: (region) => ({ lines: [toPoints(region.points)] }),
    python: (region) => `Trace([${tuples(region.points)}]${poolArguments(region, true)})`,
  },
  point: {
    title: "Point",
    name: "Point",
    shape: (region) => ({ dots: [{ x: region.x, y: region.y }] }),
    python: (region) => `Point(${region.x}, ${region.y})`,
  },
};

/**
 * Return a region with the pool that the settings give to its kind.
 * @param {Region} region
 * @param {Settings} settings
 * @returns {Region}
 */
export function withPool(region, settings) {
  const kind = KINDS[region.kind];
  if (!kind.pooledAs) return region;
  const pool = settings.pools[kind.pooledAs];
  return kind.withPool ? kind.withPool(region, pool) : { ...region, pool };
}

/**
 * Return the options of a description, those of the API.
 * @param {Settings} settings
 */
export function optionsOf({ mode, beams }) {
  return { mode, beams };
}

/**
 * Return the rectangle around a region in image pixels; of one without a place, the whole image.
 * @param {Region} region
 * @param {Size} image
 * @returns {Rectangle}
 */
export function bounds(region, image) {
  const { areas = [], lines = [], dots = [], grid } = KINDS[region.kind].shape(region);
  if (grid) return gridBounds(grid, image);
  const points = [...areas.flat(), ...lines.flat(), ...dots];
  return points.length ? boundsOf(points) : { left: 0, top: 0, right: image.width, bottom: image.height };
}

/**
 * Return whether a region lies under a point of the image; lines and dots do if they are within ``tolerance`` of it.
 * @param {Region} region
 * @param {Point} point
 * @param {Size} image
 * @param {number} tolerance in image pixels
 */
export function isUnder(region, point, image, tolerance) {
  const { areas = [], lines = [], dots = [], grid } = KINDS[region.kind].shape(region);
  return (
    areas.some((area) => isInside(point, area)) ||
    lines.some((line) => distanceToLine(point, line) <= tolerance) ||
    dots.some((dot) => distance(point, dot) <= tolerance) ||
    (grid !== undefined && covers(grid, point, image))
  );
}

/**
 * Return regions and their captions as JSON text, which is a question that the API takes: a caption stands where it takes
 * what a detector says of a region.
 * @param {Region[]} regions
 * @param {(import("./api.js").Caption | undefined)[]} captions one for each region; undefined where none is there
 * @param {Settings} settings
 */
export function asJson(regions, captions, settings) {
  const lines = regions.map((region, index) => {
    const caption = captions[index];
    const said = caption && !caption.error ? { class_name: caption.text, confidence: caption.score ?? undefined } : {};
    return `    ${JSON.stringify({ ...withPool(region, settings), ...said })}`;
  });
  const options = JSON.stringify(optionsOf(settings));
  return `{\n  "regions": [\n${lines.join(",\n")}\n  ],\n  "options": ${options}\n}\n`;
}

/**
 * Return a Python program that prints the captions of the regions.
 * @param {Region[]} regions
 * @param {Settings} settings
 * @param {{bundle: string, image: string, resizedTo: Size | null}} source
 */
export function asPython(regions, settings, { bundle, image, resizedTo }) {
  const pooled = regions.map((region) => withPool(region, settings));
  const names = new Set(pooled.map((region) => KINDS[region.kind].name));
  const hasMasks = names.delete("from_dict");
  const opened = resizedTo
    ? `Image.open(${pythonValue(image)}).resize((${resizedTo.width}, ${resizedTo.height}))`
    : pythonValue(image);
  return [
    ...(resizedTo ? ["from PIL import Image"] : []),
    `from patchcaption import ${["Captioner", ...names].sort().join(", ")}`,
    ...(hasMasks ? ["from runtime.regions import from_dict"] : []),
    "",
    `captioner = Captioner.load(${pythonValue(`engines/${bundle}`)})`,
    `features = captioner.encode(${opened})`,
    "regions = [",
    ...pooled.map((region) => `    ${KINDS[region.kind].python(region)},`),
    "]",
    `for caption in captioner.describe(features, regions${keywords(settings)}):`,
    "    print(caption.text)",
    "",
  ].join("\n");
}

/** @param {Settings} settings */
function keywords({ mode, beams }) {
  return `${mode === "decode" ? "" : `, mode=${pythonValue(mode)}`}${beams === 1 ? "" : `, beams=${beams}`}`;
}

/**
 * @param {Region} region
 * @param {boolean} hasOthers whether arguments stand before it
 */
function poolArguments({ kind, pool }, hasOthers) {
  const defaults = POOLS[KINDS[kind].pooledAs ?? ""];
  if (!pool || pool === defaults[0]) return "";
  return `${hasOthers ? ", " : ""}pool=${pythonValue(pool)}`;
}

/** @param {any} value of strings, numbers, lists and objects: JSON's literals of these are Python's, too */
function pythonValue(value) {
  return JSON.stringify(value);
}

/** @param {[number, number][]} points */
function tuples(points) {
  return points.map(([x, y]) => `(${x}, ${y})`).join(", ");
}

/** @param {Region} box */
function corneredTuple({ xyxy }) {
  return `(${xyxy.join(", ")})`;
}

/**
 * @param {[number, number][]} points
 * @returns {Point[]}
 */
function toPoints(points) {
  return points.map(([x, y]) => ({ x, y }));
}

/**
 * @param {[number, number, number, number]} xyxy
 * @returns {Point[]}
 */
function corners([x1, y1, x2, y2]) {
  return toPoints([
    [x1, y1],
    [x2, y1],
    [x2, y2],
    [x1, y2],
  ]);
}

/** @type {WeakMap<Region, Grid>} */
const grids = new WeakMap();

/**
 * @param {Region} region
 * @returns {Grid}
 */
function gridOf(region) {
  let grid = grids.get(region);
  if (!grid) {
    grid = fromRunLengths(region.counts, region.size[0], region.size[1]);
    grids.set(region, grid);
  }
  return grid;
}

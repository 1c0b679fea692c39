// @ts-check
/**
 * Draws the stage: the picture on one canvas; regions, labels, the draft and the crosshair on another over it.
 *
 * @typedef {import("./api.js").Attention} Attention
 * @typedef {import("./geometry.js").Placement} Placement
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Rectangle} Rectangle
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./images.js").Picture} Picture
 * @typedef {import("./masks.js").Grid} Grid
 * @typedef {import("./regions.js").Region} Region
 * @typedef {import("./regions.js").Shape} Shape
 * @typedef {{id: number, region: Region, label: string, isSelected: boolean}} Mark
 * @typedef {{strokes: Point[][], region: Region | null, brush: number | null}} Sketch
 */
import { bitmapSize, fit, toStage } from "./geometry.js";
import { placeLabels, wrap } from "./labels.js";
import { bounds, KINDS } from "./regions.js";

const FONT = "500 13px system-ui, sans-serif";
const LINE_HEIGHT = 17;
const PADDING = { x: 8, y: 4 };
const LABEL_WIDTH = 220;
const MAX_LABEL_LINES = 3;
const WHITE = "#ffffff";
const LABEL_GROUND = "rgba(17, 20, 26, 0.88)";
const HALO = "rgba(0, 0, 0, 0.65)";
/** How dark the patch is that cls looks at least. */
const DARKEST = 0.85;
/** Colours of regions, each clear on dark and on light pictures with the halo around it. */
const COLOURS = ["#ffb020", "#36c5f0", "#ff6b8b", "#5ee38c", "#c79bff", "#ffe14d", "#4dd6c1", "#ff8f5a"];
const DRAFT_COLOUR = WHITE;
/** Of strokes of the brush, which have no outline. */
const BRUSH_COLOUR = "#ff3d9a";

/** @param {number} id of a region */
export function colourOf(id) {
  return COLOURS[(id + COLOURS.length - 1) % COLOURS.length];
}

export class View {
  /** @type {Placement} */
  placement = { scale: 1, left: 0, top: 0 };
  /** @type {Size} */
  size = { width: 0, height: 0 };
  /** @type {{id: number, place: Rectangle}[]} */
  #labels = [];
  /** What the picture's canvas shows, and its size. @type {unknown[]} */
  #drawn = [];
  /** @type {WeakMap<Grid, Map<string, OffscreenCanvas>>} */
  #stencils = new WeakMap();

  /**
   * @param {HTMLElement} stage
   * @param {HTMLCanvasElement} picture
   * @param {HTMLCanvasElement} marks
   */
  constructor(stage, picture, marks) {
    this.stage = stage;
    this.canvases = { picture, marks };
  }

  /**
   * Fit the canvases to the stage, and an image into them.
   * @param {Size | null} image
   */
  arrange(image) {
    this.size = { width: this.stage.clientWidth, height: this.stage.clientHeight };
    const bitmap = bitmapSize(this.size, devicePixelRatio);
    for (const canvas of Object.values(this.canvases)) {
      if (canvas.width !== bitmap.width) canvas.width = bitmap.width;
      if (canvas.height !== bitmap.height) canvas.height = bitmap.height;
    }
    if (image) this.placement = fit(image, this.size);
  }

  /**
   * Draw the picture, unless it is there as it is.
   * @param {Picture | null} picture
   * @param {Attention | null} attention
   * @param {boolean} isMoving
   */
  drawPicture(picture, attention, isMoving) {
    const [{ width, height }, before] = [this.canvases.picture, this.#drawn];
    this.#drawn = [picture, attention, width, height];
    if (!isMoving && this.#drawn.every((part, index) => part === before[index])) return;
    const pen = this.#cleared(this.canvases.picture);
    if (!picture?.source) return;
    const { scale, left, top } = this.placement;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture.source, left, top, picture.width * scale, picture.height * scale);
    if (attention) this.#drawAttention(pen, attention);
  }

  /**
   * @param {Picture | null} picture
   * @param {Mark[]} marks the selected one last
   * @param {Sketch} sketch
   * @param {Point | null} crosshair in the image
   */
  drawMarks(picture, marks, sketch, crosshair) {
    const pen = this.#cleared(this.canvases.marks);
    this.#labels = [];
    if (!picture) return;
    for (const { id, region, isSelected } of marks) {
      this.#drawShape(pen, KINDS[region.kind].shape(region), picture, colourOf(id), isSelected ? 4 : 2);
    }
    this.#drawSketch(pen, sketch, picture);
    this.#drawLabels(pen, marks, picture);
    if (crosshair) this.#drawCrosshair(pen, toStage(crosshair, this.placement));
  }

  /**
   * Return the id of the region whose label lies at a point of the stage.
   * @param {Point} point
   */
  labelAt({ x, y }) {
    const found = this.#labels.find(
      ({ place }) => x >= place.left && x <= place.right && y >= place.top && y <= place.bottom,
    );
    return found?.id ?? null;
  }

  /**
   * @param {Rectangle} rectangle in the image
   * @returns {Rectangle} on the stage
   */
  toStage({ left, top, right, bottom }) {
    const [start, end] = [{ x: left, y: top }, { x: right, y: bottom }].map((corner) => toStage(corner, this.placement));
    return { left: start.x, top: start.y, right: end.x, bottom: end.y };
  }

  /** @param {HTMLCanvasElement} canvas */
  #cleared(canvas) {
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, this.size.width, this.size.height);
    pen.lineJoin = "round";
    pen.lineCap = "round";
    pen.font = FONT;
    pen.textBaseline = "middle";
    return pen;
  }

  /**
   * Darken what cls looks at less than at the patch that it looks at most.
   * @param {CanvasRenderingContext2D} pen
   * @param {Attention} attention
   */
  #drawAttention(pen, { rows, columns, xyxy, weights }) {
    const most = Math.max(...weights.flat());
    const shade = new ImageData(columns, rows);
    weights.flat().forEach((weight, index) => {
      shade.data[4 * index + 3] = 255 * DARKEST * (1 - weight / most);
    });
    const { left, top, right, bottom } = this.toStage(asRectangle(xyxy));
    pen.drawImage(asCanvas(shade), left, top, right - left, bottom - top);
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Shape} shape
   * @param {Size} image
   * @param {string} colour
   * @param {number} width
   */
  #drawShape(pen, { areas = [], lines = [], dots = [], grid }, image, colour, width) {
    if (grid) this.#drawGrid(pen, grid, image, colour, width);
    for (const area of areas) {
      const path = this.#path(area);
      path.closePath();
      fill(pen, path, colour);
      stroke(pen, path, colour, width);
    }
    for (const line of lines) stroke(pen, this.#path(line), colour, width + 1);
    for (const dot of dots) drawDot(pen, toStage(dot, this.placement), colour, width + 3);
  }

  /** @param {Point[]} points */
  #path(points) {
    const path = new Path2D();
    for (const { x, y } of points.map((point) => toStage(point, this.placement))) path.lineTo(x, y);
    return path;
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Grid} grid
   * @param {Size} image
   * @param {string} colour
   * @param {number} width
   */
  #drawGrid(pen, grid, image, colour, width) {
    const { left, top, right, bottom } = this.toStage({ left: 0, top: 0, right: image.width, bottom: image.height });
    pen.globalAlpha = width > 2 ? 0.75 : 0.55;
    pen.drawImage(this.#stencil(grid, colour), left, top, right - left, bottom - top);
    pen.globalAlpha = 1;
  }

  /**
   * @param {Grid} grid
   * @param {string} colour
   */
  #stencil(grid, colour) {
    const known = this.#stencils.get(grid) ?? new Map();
    this.#stencils.set(grid, known);
    if (!known.has(colour)) known.set(colour, stencilOf(grid, colour));
    return known.get(colour);
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Sketch} sketch
   * @param {Size} image
   */
  #drawSketch(pen, { strokes, region, brush }, image) {
    if (brush !== null) {
      pen.globalAlpha = 0.55;
      pen.strokeStyle = BRUSH_COLOUR;
      pen.lineWidth = 2 * brush * this.placement.scale;
      for (const points of strokes) pen.stroke(this.#path([points[0], ...points]));
      pen.globalAlpha = 1;
    } else if (region) {
      this.#drawShape(pen, KINDS[region.kind].shape(region), image, DRAFT_COLOUR, 2);
    } else {
      for (const points of strokes) stroke(pen, this.#path([points[0], ...points]), DRAFT_COLOUR, 3);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Mark[]} marks
   * @param {Size} image
   */
  #drawLabels(pen, marks, image) {
    const first = marks.filter(({ label }) => label).reverse();
    const texts = first.map(({ label }) => wrapped(pen, label, Math.min(LABEL_WIDTH, this.size.width * 0.6)));
    const places = placeLabels(
      first.map(({ region }, index) => ({ size: texts[index].size, region: this.toStage(bounds(region, image)) })),
      { left: 2, top: 2, right: this.size.width - 2, bottom: this.size.height - 2 },
    );
    places.forEach(({ x, y }, index) => {
      const { lines, size } = texts[index];
      drawLabel(pen, { x, y }, size, lines, colourOf(first[index].id), first[index].isSelected);
      this.#labels.push({ id: first[index].id, place: { left: x, top: y, right: x + size.width, bottom: y + size.height } });
    });
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Point} at
   */
  #drawCrosshair(pen, { x, y }) {
    const path = new Path2D();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + 4 * dx, y + 4 * dy);
      path.lineTo(x + 16 * dx, y + 16 * dy);
    }
    stroke(pen, path, WHITE, 2);
  }
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Path2D} path
 * @param {string} colour
 */
function fill(pen, path, colour) {
  pen.globalAlpha = 0.12;
  pen.fillStyle = colour;
  pen.fill(path);
  pen.globalAlpha = 1;
}

/**
 * Draw a line with a dark halo, so that it is seen on every picture.
 * @param {CanvasRenderingContext2D} pen
 * @param {Path2D} path
 * @param {string} colour
 * @param {number} width
 */
function stroke(pen, path, colour, width) {
  pen.lineWidth = width + 2;
  pen.strokeStyle = HALO;
  pen.stroke(path);
  pen.lineWidth = width;
  pen.strokeStyle = colour;
  pen.stroke(path);
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Point} at
 * @param {string} colour
 * @param {number} radius
 */
function drawDot(pen, { x, y }, colour, radius) {
  const path = new Path2D();
  path.arc(x, y, radius, 0, 2 * Math.PI);
  stroke(pen, path, WHITE, 2);
  pen.fillStyle = colour;
  pen.fill(path);
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Point} corner
 * @param {Size} size
 * @param {string[]} lines
 * @param {string} colour
 * @param {boolean} isSelected
 */
function drawLabel(pen, { x, y }, { width, height }, lines, colour, isSelected) {
  const box = new Path2D();
  box.roundRect(x, y, width, height, 5);
  pen.fillStyle = LABEL_GROUND;
  pen.fill(box);
  pen.lineWidth = isSelected ? 2 : 1;
  pen.strokeStyle = colour;
  pen.stroke(box);
  pen.fillStyle = WHITE;
  lines.forEach((line, row) => pen.fillText(line, x + PADDING.x, y + PADDING.y + LINE_HEIGHT * (row + 0.5)));
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {string} text
 * @param {number} width
 * @returns {{lines: string[], size: Size}}
 */
function wrapped(pen, text, width) {
  const measure = (/** @type {string} */ line) => pen.measureText(line).width;
  const all = wrap(text, width, measure);
  const lines = all.length > MAX_LABEL_LINES ? [...all.slice(0, MAX_LABEL_LINES - 1), `${all[MAX_LABEL_LINES - 1]} …`] : all;
  const longest = Math.max(...lines.map(measure));
  return {
    lines,
    size: { width: Math.ceil(longest) + 2 * PADDING.x, height: lines.length * LINE_HEIGHT + 2 * PADDING.y },
  };
}

/**
 * Return a mask in a colour, one pixel for each cell.
 * @param {Grid} grid
 * @param {string} colour
 */
function stencilOf({ rows, columns, cells }, colour) {
  const channels = [1, 3, 5].map((start) => Number.parseInt(colour.slice(start, start + 2), 16));
  const image = new ImageData(columns, rows);
  cells.forEach((isInside, index) => image.data.set([...channels, isInside ? 255 : 0], 4 * index));
  return asCanvas(image);
}

/** @param {ImageData} image */
function asCanvas(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(image, 0, 0);
  return canvas;
}

/** @param {number[]} xyxy */
function asRectangle([left, top, right, bottom]) {
  return { left, top, right, bottom };
}

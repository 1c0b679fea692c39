// @ts-check
/**
 * Brush masks: strokes on a grid of cells, and COCO's run lengths of them. Pure functions.
 *
 * A grid has the image's aspect ratio and covers the whole image; it has fewer cells than a large image has pixels, so
 * that a mask is made and sent while it is painted.
 *
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {{rows: number, columns: number, cells: Uint8Array}} Grid  cells row by row, 1 inside
 */
import { boundsOf, distanceToSegment } from "./geometry.js";

/** The longer side of the largest grid. */
const MAX_SIDE = 512;

/**
 * Return an empty grid for an image. Both sides are rounded up, which keeps its aspect ratio as the runtime checks it.
 * @param {Size} image
 * @returns {Grid}
 */
export function emptyGrid(image) {
  const factor = Math.min(1, MAX_SIDE / Math.max(image.width, image.height));
  const [rows, columns] = [Math.ceil(image.height * factor), Math.ceil(image.width * factor)];
  return { rows, columns, cells: new Uint8Array(rows * columns) };
}

/**
 * Return the grid of strokes: a cell is inside if its centre lies within ``radius`` of one of them.
 * @param {Point[][]} strokes in image pixels
 * @param {number} radius in image pixels
 * @param {Size} image
 * @returns {Grid}
 */
export function paint(strokes, radius, image) {
  const grid = emptyGrid(image);
  for (const stroke of strokes) {
    stroke.forEach((end, index) => paintSegment(grid, stroke[Math.max(index - 1, 0)], end, radius, image));
  }
  return grid;
}

/**
 * @param {Grid} grid
 * @param {Point} start
 * @param {Point} end
 * @param {number} radius
 * @param {Size} image
 */
function paintSegment(grid, start, end, radius, image) {
  const [cellWidth, cellHeight] = [image.width / grid.columns, image.height / grid.rows];
  const bounds = boundsOf([start, end]);
  const [firstRow, lastRow] = cellsOf(bounds.top - radius, bounds.bottom + radius, cellHeight, grid.rows);
  const [firstColumn, lastColumn] = cellsOf(bounds.left - radius, bounds.right + radius, cellWidth, grid.columns);
  for (let row = firstRow; row <= lastRow; row += 1) {
    for (let column = firstColumn; column <= lastColumn; column += 1) {
      const centre = { x: (column + 0.5) * cellWidth, y: (row + 0.5) * cellHeight };
      if (distanceToSegment(centre, start, end) <= radius) grid.cells[row * grid.columns + column] = 1;
    }
  }
}

/**
 * Return the first and the last cell between two coordinates.
 * @param {number} from
 * @param {number} to
 * @param {number} cellSize
 * @param {number} count
 */
function cellsOf(from, to, cellSize, count) {
  return [Math.max(0, Math.floor(from / cellSize)), Math.min(count - 1, Math.floor(to / cellSize))];
}

/**
 * Return COCO's run lengths of a grid: column by column, outside and inside in turn, outside first.
 * @param {Grid} grid
 * @returns {number[]}
 */
export function runLengths({ rows, columns, cells }) {
  const counts = [0];
  let inside = 0;
  for (let column = 0; column < columns; column += 1) {
    for (let row = 0; row < rows; row += 1) {
      if (cells[row * columns + column] !== inside) {
        inside = 1 - inside;
        counts.push(0);
      }
      counts[counts.length - 1] += 1;
    }
  }
  return counts;
}

/**
 * Return the grid of run lengths.
 * @param {number[]} counts
 * @param {number} rows
 * @param {number} columns
 * @returns {Grid}
 */
export function fromRunLengths(counts, rows, columns) {
  const cells = new Uint8Array(rows * columns);
  let position = 0;
  counts.forEach((count, run) => {
    for (const end = position + count; position < end; position += 1) {
      if (run % 2 === 1) cells[(position % rows) * columns + Math.floor(position / rows)] = 1;
    }
  });
  return { rows, columns, cells };
}

/**
 * Return whether the cell that a point lies in is inside.
 * @param {Grid} grid
 * @param {Point} point in image pixels
 * @param {Size} image
 */
export function covers(grid, point, image) {
  const row = Math.floor((point.y / image.height) * grid.rows);
  const column = Math.floor((point.x / image.width) * grid.columns);
  const isOnGrid = row >= 0 && column >= 0 && row < grid.rows && column < grid.columns;
  return isOnGrid && grid.cells[row * grid.columns + column] === 1;
}

/**
 * Return the rectangle around the cells that are inside, in image pixels.
 * @param {Grid} grid at least one cell is inside
 * @param {Size} image
 */
export function gridBounds({ rows, columns, cells }, image) {
  const corners = [];
  for (let index = cells.indexOf(1); index >= 0; index = cells.indexOf(1, index + 1)) {
    const [row, column] = [Math.floor(index / columns), index % columns];
    corners.push({ x: column, y: row }, { x: column + 1, y: row + 1 });
  }
  const { left, top, right, bottom } = boundsOf(corners);
  const [width, height] = [image.width / columns, image.height / rows];
  return { left: left * width, top: top * height, right: right * width, bottom: bottom * height };
}

// @ts-check
/**
 * The page: wires the session, the stage, the tools, the camera and the panel to each other and to the document.
 *
 * @typedef {import("./geometry.js").Point} Point
 */
import { Service, ServiceError } from "./api.js";
import { toStage } from "./geometry.js";
import { Hover } from "./hover.js";
import { openPicture } from "./images.js";
import { Input } from "./input.js";
import { Live } from "./live.js";
import { CaptionList, element, renderFacts, SettingsForm, ToolButtons } from "./panel.js";
import { asJson, asPython, isUnder, KINDS } from "./regions.js";
import { Session } from "./session.js";
import { listenForFiles } from "./sources.js";
import { Speech } from "./speech.js";
import { Drafting } from "./tools.js";
import { View } from "./view.js";

/** On the screen, in CSS pixels: between points of a path, and what is nearer than a finger can tell. */
const PATH_STEP = 6;
const TOLERANCE = 12;

const marks = /** @type {HTMLCanvasElement} */ (element("marks"));
const video = /** @type {HTMLVideoElement} */ (element("video"));
const fileInput = /** @type {HTMLInputElement} */ (element("file"));
const brush = /** @type {HTMLInputElement} */ (element("brush"));
const device = /** @type {HTMLSelectElement} */ (element("device"));
const tokenInput = /** @type {HTMLInputElement} */ (element("token"));

const speech = new Speech(element("status"));
const session = new Session(new Service((message) => speech.say(message)), {
  onChange: render,
  onError: fail,
  onWorked: recover,
  onSaid: (message) => speech.say(message),
});
const view = new View(element("stage"), /** @type {HTMLCanvasElement} */ (element("picture")), marks);
const drafting = new Drafting({
  image: () => session.picture ?? { width: 0, height: 0 },
  scale: () => ({
    step: PATH_STEP / view.placement.scale,
    tolerance: TOLERANCE / view.placement.scale,
    brush: Number(brush.value) / view.placement.scale,
  }),
  onRegion: (region) => session.add(region),
  onPick: pick,
  onChange: follow,
});
const input = new Input(marks, {
  drafting,
  view,
  image: () => session.picture,
  onCursor: follow,
  onDelete: () => session.selected !== null && session.remove(session.selected),
});
const hover = new Hover(element("bubble"), {
  session,
  drafting,
  input,
  view,
  onCaption: (text) => speech.settle(text),
});
const live = new Live(video, { session, hover, onFrame: drawPicture, onError: fail });
const list = new CaptionList(element("regions"), session);
const form = new SettingsForm(session);
const tools = new ToolButtons(element("tools"), drafting);

/** @type {Error | null} */
let shownError = null;
let isLooking = false;
let isDrawing = false;

/** Show what has changed: of the session, all but the stage at once, the stage with the screen's next frame. */
function render() {
  const { picture, info, entries } = session;
  element("bundle").textContent = info ? `${info.bundle.name} · ${info.bundle.backbone}` : "";
  element("empty").hidden = picture !== null;
  element("no-captions").hidden = picture !== null;
  setDisabled("undo", !session.canUndo && drafting.isEmpty);
  setDisabled("redo", !session.canRedo);
  setDisabled("clear", entries.length < 2);
  setDisabled("copy-json", picture === null);
  setDisabled("copy-python", picture === null);
  renderCamera();
  list.render();
  form.render();
  renderFacts(element("facts"), session, live.pace);
  announce();
  draw();
}

function renderCamera() {
  const [camera, attention] = [element("camera"), element("attention")];
  camera.textContent = live.isOn ? "Stop camera" : "Camera";
  camera.setAttribute("aria-pressed", String(live.isOn));
  element("device-field").hidden = !live.isOn || device.options.length < 2;
  attention.hidden = !session.can.attention || !session.isEncoded;
  attention.setAttribute("aria-pressed", String(isLooking));
}

/** Show what depends on the draft and the cursor. */
function follow() {
  tools.render();
  element("brush-field").hidden = drafting.tool.name !== "brush";
  element("finish").hidden = !drafting.canFinish;
  element("cancel").hidden = drafting.isEmpty;
  setDisabled("undo", !session.canUndo && drafting.isEmpty);
  hover.update();
  draw();
}

/** Say the caption of what is selected, or of the whole image. */
function announce() {
  const entry = session.entries.find(({ id }) => id === session.selected) ?? session.entries[0];
  const caption = session.picture && session.captionOf(entry);
  if (caption && !input.cursor) speech.settle(`${KINDS[entry.region.kind].title}: ${caption.error ?? caption.text}`);
}

/** Draw the stage with the screen's next frame. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    view.arrange(session.picture);
    drawPicture();
    drawMarks();
  });
}

function drawPicture() {
  view.drawPicture(session.picture, isLooking ? session.attention : null, live.isOn);
}

function drawMarks() {
  const shown = session.entries.filter(({ region }) => region.kind !== "whole_image").map((entry) => ({
    ...entry,
    label: session.captionOf(entry)?.error ?? session.captionOf(entry)?.text ?? "",
    isSelected: entry.id === session.selected,
  }));
  shown.sort((a, b) => Number(a.isSelected) - Number(b.isSelected));
  const isBrush = drafting.tool.name === "brush";
  const sketch = {
    strokes: drafting.strokes,
    region: isBrush ? null : drafting.region(input.cursor),
    brush: isBrush ? Number(brush.value) : null,
  };
  view.drawMarks(session.picture, shown, sketch, input.isCrosshair ? input.cursor : null);
}

/**
 * Select the region whose label, or else shape, lies at a point.
 * @param {Point} point
 */
function pick(point) {
  const { picture } = session;
  if (!picture) return;
  const tolerance = TOLERANCE / view.placement.scale;
  const under = [...session.entries].reverse().find(({ region }) => isUnder(region, point, picture, tolerance));
  session.select(view.labelAt(toStage(point, view.placement)) ?? under?.id ?? null);
}

/** @param {File} file */
async function open(file) {
  clearError();
  try {
    const picture = await openPicture(file, file.name || "image", session.limits);
    live.end();
    startAnew();
    await session.open(picture);
  } catch (error) {
    fail(/** @type {Error} */ (error));
  }
}

async function toggleCamera() {
  clearError();
  if (live.isOn) await live.stop();
  else await startCamera("");
  render();
}

/** @param {string} deviceId "" for the browser's choice */
async function startCamera(deviceId) {
  try {
    startAnew();
    await live.start(deviceId);
    const cameras = await live.camera.list();
    device.replaceChildren(...cameras.map(({ id, label }) => new Option(label, id)));
    device.value = live.camera.deviceId;
  } catch (error) {
    live.end();
    fail(/** @type {Error} */ (error));
  }
}

function startAnew() {
  drafting.cancel();
  input.reset();
  isLooking = false;
}

function toggleAttention() {
  isLooking = !isLooking;
  if (isLooking) session.look();
  render();
}

function undo() {
  if (drafting.isEmpty) session.undo();
  else drafting.undo();
}

/**
 * Put a text on the clipboard; where the browser does not let this page do so, show it.
 * @param {string} text
 * @param {string} language
 */
async function copy(text, language) {
  try {
    await navigator.clipboard.writeText(text);
    speech.say(`Copied as ${language}.`);
  } catch {
    /** @type {HTMLTextAreaElement} */ (element("copied-text")).value = text;
    /** @type {HTMLDialogElement} */ (element("copied")).showModal();
    /** @type {HTMLTextAreaElement} */ (element("copied-text")).select();
  }
}

function copyJson() {
  const captions = session.entries.map((entry) => session.captionOf(entry));
  copy(asJson(session.entries.map(({ region }) => region), captions, session.settings), "JSON");
}

function copyPython() {
  const { picture, info, settings } = session;
  if (!picture) return;
  const source = { bundle: info.bundle.name, image: picture.name, resizedTo: picture.resizedTo };
  copy(asPython(session.entries.map(({ region }) => region), settings, source), "Python");
}

/** @param {Error} error */
function fail(error) {
  shownError = error;
  element("error-text").textContent = error.message;
  element("error").hidden = false;
  element("try-again").hidden = !(error instanceof ServiceError);
  if (error instanceof ServiceError && error.status === 401) {
    element("token-form").hidden = false;
    tokenInput.focus();
  }
  render();
}

/** When the service answers again, ask again for what is missing. */
function recover() {
  if (!(shownError instanceof ServiceError)) return;
  clearError();
  session.describe();
}

function clearError() {
  shownError = null;
  element("error").hidden = true;
}

/** @param {SubmitEvent} event */
function takeToken(event) {
  event.preventDefault();
  session.service.token = tokenInput.value.trim();
  tokenInput.value = "";
  element("token-form").hidden = true;
  clearError();
  session.connect();
}

/** @param {KeyboardEvent} event */
function shortcut(event) {
  const isTyping = event.target instanceof HTMLInputElement && event.target.type !== "range";
  if (isTyping || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  if (event.shiftKey) session.redo();
  else undo();
}

/**
 * @param {string} id of a button
 * @param {boolean} isDisabled
 */
function setDisabled(id, isDisabled) {
  /** @type {HTMLButtonElement} */ (element(id)).disabled = isDisabled;
}

function listen() {
  listenForFiles(fileInput, [element("open"), element("open-first")], open);
  /** @type {Record<string, () => void>} */
  const clicks = {
    camera: toggleCamera,
    "camera-first": toggleCamera,
    finish: () => drafting.finish(),
    cancel: () => drafting.cancel(),
    undo,
    redo: () => session.redo(),
    clear: () => session.clear(),
    attention: toggleAttention,
    "copy-json": copyJson,
    "copy-python": copyPython,
    "try-again": () => session.connect(),
    dismiss: clearError,
  };
  for (const [id, react] of Object.entries(clicks)) element(id).addEventListener("click", react);
  device.addEventListener("change", () => startCamera(device.value));
  brush.addEventListener("input", follow);
  element("token-form").addEventListener("submit", takeToken);
  document.addEventListener("keydown", shortcut);
  addEventListener("pagehide", () => session.leave());
  new ResizeObserver(draw).observe(element("stage"));
}

listen();
follow();
session.connect();

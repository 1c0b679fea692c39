// @ts-check
/**
 * The list of captions, the settings and the times, beside the image.
 *
 * @typedef {import("./session.js").Entry} Entry
 * @typedef {import("./session.js").Session} Session
 * @typedef {import("./tools.js").Tool} Tool
 */
import { KINDS, POOLS } from "./regions.js";
import { TOOLS } from "./tools.js";
import { colourOf } from "./view.js";

/** What poolings are called. @type {Record<string, string>} */
const POOL_TITLES = {
  mean: "all of it alike",
  gaussian: "its middle most",
  attention: "where cls looks",
  count: "as often as passed",
  cls: "the cls token",
};

/**
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function element(id) {
  return /** @type {T} */ (document.getElementById(id));
}

/**
 * Return a new element with a class and what is in it.
 * @param {string} tag
 * @param {string} className
 * @param {...(Node | string)} children
 */
function made(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** The buttons of the tools, one of which is pressed. */
export class ToolButtons {
  /** @type {Map<Tool, HTMLElement>} */
  #buttons = new Map();

  /**
   * @param {HTMLElement} group
   * @param {import("./tools.js").Drafting} drafting
   */
  constructor(group, drafting) {
    this.drafting = drafting;
    for (const tool of TOOLS) {
      const button = made("button", "tool", icon(tool.icon), tool.label);
      button.setAttribute("type", "button");
      button.title = `${tool.label} (${tool.key.toUpperCase()})`;
      button.addEventListener("click", () => drafting.choose(tool));
      this.#buttons.set(tool, button);
      group.append(button);
    }
  }

  render() {
    for (const [tool, button] of this.#buttons) button.setAttribute("aria-pressed", String(tool === this.drafting.tool));
    set(element("hint"), this.drafting.tool.hint);
  }
}

/** @param {string} path of 24 x 24 */
function icon(path) {
  const [svg, line] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** The list of regions with their captions. */
export class CaptionList {
  /** Items by the ids of their entries: kept, so that the focus stays. @type {Map<number, HTMLElement>} */
  #items = new Map();

  /**
   * @param {HTMLElement} list
   * @param {Session} session
   */
  constructor(list, session) {
    this.list = list;
    this.session = session;
  }

  render() {
    const entries = this.session.picture ? this.session.entries : [];
    const ids = new Set(entries.map(({ id }) => id));
    for (const [id, item] of this.#items) if (!ids.has(id)) this.#drop(id, item);
    entries.forEach((entry, index) => {
      const item = this.#items.get(entry.id) ?? this.#create(entry);
      if (this.list.children[index] !== item) this.list.insertBefore(item, this.list.children[index] ?? null);
      this.#fill(item, entry, index);
    });
  }

  /**
   * Remove an item; the focus, if it is in it, goes to the one before.
   * @param {number} id
   * @param {HTMLElement} item
   */
  #drop(id, item) {
    const hadFocus = item.contains(document.activeElement);
    const before = /** @type {HTMLElement | null} */ (item.previousElementSibling?.querySelector(".choose") ?? null);
    item.remove();
    this.#items.delete(id);
    if (hadFocus) before?.focus();
  }

  /** @param {Entry} entry */
  #create({ id }) {
    const choose = made("button", "choose", made("span", "head"), made("span", "text"));
    choose.setAttribute("type", "button");
    choose.addEventListener("click", () => this.session.select(this.session.selected === id ? null : id));
    const item = made("li", "region", choose);
    if (id > 0) {
      const remove = made("button", "remove", "×");
      remove.setAttribute("type", "button");
      remove.addEventListener("click", () => this.session.remove(id));
      item.append(remove);
    }
    item.style.setProperty("--colour", id > 0 ? colourOf(id) : "var(--control-edge)");
    this.#items.set(id, item);
    return item;
  }

  /**
   * @param {HTMLElement} item
   * @param {Entry} entry
   * @param {number} index
   */
  #fill(item, entry, index) {
    const caption = this.session.captionOf(entry);
    const { title } = KINDS[entry.region.kind];
    const name = index > 0 ? `${index} ${title}` : title;
    const score = caption && caption.score !== null && !caption.error ? caption.score.toFixed(2) : "";
    const isSelected = this.session.selected === entry.id;
    set(item.querySelector(".head"), made("span", "", name), made("span", "score", score));
    set(item.querySelector(".text"), caption?.error ?? caption?.text ?? "…");
    item.classList.toggle("is-selected", isSelected);
    item.classList.toggle("has-error", caption?.error !== undefined);
    item.querySelector(".choose")?.setAttribute("aria-pressed", String(isSelected));
    item.querySelector(".remove")?.setAttribute("aria-label", `Remove ${name}`);
    this.#fillNearest(item, caption?.nearest ?? []);
  }

  /**
   * @param {HTMLElement} item
   * @param {{text: string, similarity: number}[]} nearest
   */
  #fillNearest(item, nearest) {
    item.querySelector(".nearest")?.remove();
    if (nearest.length === 0) return;
    const rows = nearest.map(({ text, similarity }) =>
      made("li", "", made("span", "", `≈ ${text}`), made("span", "score", similarity.toFixed(2))),
    );
    const list = made("ul", "nearest", ...rows);
    list.setAttribute("aria-label", "Nearest captions of the memory");
    item.append(list);
  }
}

/** The settings; a change of one describes all regions again. */
export class SettingsForm {
  /** @param {Session} session */
  constructor(session) {
    this.session = session;
    this.#listen();
  }

  /** Show what the bundle can do, and the settings. */
  render() {
    const { can, settings } = this.session;
    element("mode-field").hidden = !can.nearest;
    element("beams-field").hidden = !can.beams;
    /** @type {HTMLSelectElement} */ (element("mode")).value = settings.mode;
    for (const group of Object.keys(POOLS)) {
      const select = /** @type {HTMLSelectElement} */ (element(`pool-${group}`));
      for (const option of select.options) option.disabled = option.value === "attention" && !can.attention;
      select.value = settings.pools[group];
    }
  }

  #listen() {
    const mode = /** @type {HTMLSelectElement} */ (element("mode"));
    mode.addEventListener("change", () => this.session.set({ mode: mode.value }));
    const beams = /** @type {HTMLInputElement} */ (element("beams"));
    beams.addEventListener("change", () => {
      const wanted = Math.round(Number(beams.value)) || 1;
      beams.value = String(Math.min(Math.max(wanted, Number(beams.min)), Number(beams.max)));
      this.session.set({ beams: Number(beams.value) });
    });
    for (const [group, pools] of Object.entries(POOLS)) this.#listenToPool(group, pools);
  }

  /**
   * @param {string} group
   * @param {string[]} pools
   */
  #listenToPool(group, pools) {
    const select = /** @type {HTMLSelectElement} */ (element(`pool-${group}`));
    select.append(...pools.map((pool) => new Option(POOL_TITLES[pool], pool)));
    select.addEventListener("change", () => {
      this.session.set({ pools: { ...this.session.settings.pools, [group]: select.value } });
    });
  }
}

/**
 * Show the image's size and the times.
 * @param {HTMLElement} list
 * @param {Session} session
 * @param {import("./live.js").Pace | null} pace of a camera
 */
export function renderFacts(list, { picture, timing }, pace) {
  const { encode, describe, count, probe } = timing;
  const rows = [
    ["Image", picture && `${picture.width} × ${picture.height}${picture.note}`],
    ["Backbone", ms(encode)],
    ["Description", ms(describe, count === 1 ? " for 1 region" : ` for ${count} regions`)],
    ["Under the cursor", pace ? null : ms(probe)],
    ["Latency", ms(pace?.latency, `, ${pace?.rate.toFixed(1)} frames/s`)],
  ];
  const shown = rows.filter(([, fact]) => fact);
  set(list, ...shown.map(([name, fact]) => made("div", "", made("dt", "", name ?? ""), made("dd", "", fact ?? ""))));
}

/**
 * @param {number | undefined} time
 * @param {string} [more]
 */
function ms(time, more = "") {
  return time === undefined ? null : `${time < 10 ? time.toFixed(1) : Math.round(time)} ms${more}`;
}

/**
 * Replace what is in an element, unless it is the same already.
 * @param {Element | null} node
 * @param {...(Node | string)} children
 */
function set(node, ...children) {
  const next = made("div", "", ...children);
  if (node && node.innerHTML !== next.innerHTML) node.replaceChildren(...next.childNodes);
}

// @ts-check
/**
 * What the page knows: the image, its regions, their captions, and how they are asked for. It touches no element.
 *
 * A caption is kept with the question that it answers. Whatever has no answer to its present question is asked for
 * again; so a new region, another setting, and an undone removal are the same case.
 *
 * @typedef {import("./api.js").Attention} Attention
 * @typedef {import("./api.js").Caption} Caption
 * @typedef {import("./api.js").Service} Service
 * @typedef {import("./images.js").Picture} Picture
 * @typedef {import("./regions.js").Region} Region
 * @typedef {import("./regions.js").Settings} Settings
 * @typedef {{id: number, region: Region}} Entry
 * @typedef {{encode?: number, describe?: number, count?: number, probe?: number}} Timing  milliseconds, and how many regions
 */
import { History } from "./history.js";
import { optionsOf, POOLS, withPool } from "./regions.js";

/** How many captions of the memory are listed with each region. */
const NUM_NEAREST = 3;
/** The entry of the whole image, which is always there. @type {Entry} */
const WHOLE_IMAGE = { id: 0, region: { kind: "whole_image" } };

export class Session {
  /** @type {any} the answer of /v1/info; null until it is there */
  info = null;
  /** @type {Picture | null} */
  picture = null;
  /** @type {Attention | null} */
  attention = null;
  /** @type {number | null} */
  selected = null;
  /** @type {Timing} */
  timing = {};
  /** @type {Settings} */
  settings = { mode: "decode", beams: 1, pools: firstPools() };

  /** @type {History<Entry[]>} */
  #history = new History([WHOLE_IMAGE]);
  /** @type {Map<number, {question: string, caption: Caption}>} */
  #answers = new Map();
  /** @type {string | null} of the encoded image */
  #features = null;
  /** @type {Promise<void> | null} */
  #encoding = null;
  /** Calls about the encoded image that have no answer yet. @type {Set<Promise<unknown>>} */
  #calls = new Set();
  #isDescribing = false;
  #lastId = WHOLE_IMAGE.id;

  /**
   * @param {Service} service
   * @param {object} events
   * @param {() => void} events.onChange
   * @param {(error: Error) => void} events.onError
   * @param {() => void} events.onWorked called when the service has answered
   * @param {(message: string) => void} events.onSaid
   */
  constructor(service, { onChange, onError, onWorked, onSaid }) {
    this.service = service;
    this.onChange = onChange;
    this.onError = onError;
    this.onWorked = onWorked;
    this.onSaid = onSaid;
  }

  get entries() {
    return this.#history.present;
  }

  get canUndo() {
    return this.#history.canUndo;
  }

  get canRedo() {
    return this.#history.canRedo;
  }

  get can() {
    return this.info?.can ?? { nearest: false, beams: false, attention: false };
  }

  get limits() {
    return this.info?.limits ?? { bytes: Infinity, pixels: Infinity, regions: 1 };
  }

  /** How many regions one call takes: a limit counts each with its beams. */
  get maxRegions() {
    return Math.max(1, Math.floor(this.limits.regions / this.settings.beams));
  }

  /** Whether regions can be asked for: the image is encoded. */
  get isEncoded() {
    return this.#features !== null;
  }

  /** Learn what the service can do, and go on with what has failed. */
  async connect() {
    await this.#reported(async () => {
      this.info = await this.service.info();
      this.onChange();
      if (this.picture?.file) await this.#encode();
      await this.#describeAll();
    });
  }

  /**
   * Take another image, without the regions of the one before.
   * @param {Picture} picture
   */
  async open(picture) {
    this.#history = new History([WHOLE_IMAGE]);
    this.selected = null;
    await this.replace(picture);
  }

  /**
   * Take another image of the same size, on which the regions stay.
   * @param {Picture} picture
   */
  async replace(picture) {
    this.#drop();
    this.picture = picture;
    this.onChange();
    if (!picture.file) return;
    await this.#reported(async () => {
      await this.#encode();
      await this.#describeAll();
    });
  }

  /** @param {Region} region */
  add(region) {
    this.#lastId += 1;
    this.selected = this.#lastId;
    this.#change([...this.entries, { id: this.#lastId, region }]);
  }

  /** @param {number} id */
  remove(id) {
    if (id === WHOLE_IMAGE.id) return;
    if (this.selected === id) this.selected = null;
    this.#change(this.entries.filter((entry) => entry.id !== id));
    this.onSaid("Removed.");
  }

  clear() {
    this.selected = null;
    if (this.entries.length === 1) return;
    this.#change([WHOLE_IMAGE]);
    this.onSaid("All regions are removed.");
  }

  undo() {
    this.#history.undo();
    this.#changed();
    this.onSaid("Undone.");
  }

  redo() {
    this.#history.redo();
    this.#changed();
    this.onSaid("Done again.");
  }

  /** @param {number | null} id */
  select(id) {
    this.selected = id;
    this.onChange();
  }

  /** @param {Partial<Settings>} settings */
  set(settings) {
    this.settings = { ...this.settings, ...settings };
    this.#changed();
  }

  /**
   * Return the caption of an entry; undefined while it is asked for.
   * @param {Entry} entry
   * @returns {Caption | undefined}
   */
  captionOf({ id }) {
    return this.#answers.get(id)?.caption;
  }

  /** Describe all that has no caption yet, in one call after another. */
  async describe() {
    await this.#reported(() => this.#describeAll());
  }

  /**
   * Return the caption of a region that is not kept, such as what is under the cursor; undefined if there is none.
   * @param {Region} region
   * @returns {Promise<Caption | undefined>}
   */
  async probe(region) {
    return this.#reported(async () => {
      const { captions, timing_ms } = await this.#ask([region], optionsOf(this.settings));
      this.timing = { ...this.timing, probe: timing_ms.describe };
      return captions[0];
    });
  }

  /**
   * Describe the regions on one frame, and what is under the cursor.
   * @param {Blob} frame
   * @param {Region | null} probed
   * @returns {Promise<Caption | undefined>} the caption of what is under the cursor
   */
  async describeFrame(frame, probed) {
    const { picture } = this;
    const entries = this.entries.slice(0, this.maxRegions - (probed ? 1 : 0));
    const questions = entries.map((entry) => this.#question(entry));
    const regions = [...entries.map(({ region }) => region), ...(probed ? [probed] : [])];
    const pooled = regions.map((region) => withPool(region, this.settings));
    const { captions, timing_ms } = await this.service.caption(frame, pooled, this.#options());
    if (this.picture !== picture) return undefined;
    entries.forEach(({ id }, index) => this.#answers.set(id, { question: questions[index], caption: captions[index] }));
    this.timing = { encode: timing_ms.encode, describe: timing_ms.describe, count: regions.length };
    this.onChange();
    return captions[entries.length];
  }

  /** Learn where cls looks on the image. */
  async look() {
    if (this.attention || !this.#features) return;
    await this.#reported(async () => {
      const picture = this.picture;
      const attention = await this.#withFeatures((id) => this.service.attention(id));
      if (this.picture === picture) this.attention = attention;
      this.onChange();
    });
  }

  /** Let the service drop the image, as when the page is left. */
  leave() {
    if (this.#features) this.service.forget(this.#features);
    this.#features = null;
  }

  #drop() {
    const id = this.#features;
    if (id) Promise.allSettled(this.#calls).then(() => this.service.forget(id));
    this.#features = null;
    this.#encoding = null;
    this.#answers.clear();
    this.attention = null;
    this.timing = {};
  }

  /** @param {Entry[]} entries */
  #change(entries) {
    this.#history.push(entries);
    this.#changed();
  }

  #changed() {
    if (!this.entries.some(({ id }) => id === this.selected)) this.selected = null;
    this.onChange();
    this.describe();
  }

  /** Encode the image; one that is being encoded is waited for. */
  #encode() {
    if (this.#encoding) return this.#encoding;
    const encoding = this.#encodeNow().finally(() => {
      if (this.#encoding === encoding) this.#encoding = null;
    });
    this.#encoding = encoding;
    return encoding;
  }

  async #encodeNow() {
    const picture = this.picture;
    if (!picture?.file) throw new Error("There is no image to ask about.");
    this.#features = null;
    const { id, image, timing_ms } = await this.service.encode(picture.file);
    if (this.picture !== picture) return this.service.forget(id);
    checkSize(picture, image);
    this.#features = id;
    this.timing = { ...this.timing, encode: timing_ms.encode };
    this.onChange();
  }

  async #describeAll() {
    if (this.#isDescribing) return;
    this.#isDescribing = true;
    try {
      while (this.picture?.file && (await this.#describeSome()));
    } finally {
      this.#isDescribing = false;
    }
  }

  /** Describe as many regions as one call takes; return whether there may be more. */
  async #describeSome() {
    const { picture } = this;
    const asked = this.entries
      .map((entry) => ({ entry, question: this.#question(entry) }))
      .filter(({ entry, question }) => this.#answers.get(entry.id)?.question !== question)
      .slice(0, this.maxRegions);
    if (asked.length === 0) return false;
    try {
      const described = await this.#ask(asked.map(({ entry }) => entry.region), this.#options());
      if (this.picture === picture) this.#take(asked, described);
    } catch (error) {
      if (this.picture === picture) throw error;
    }
    return true;
  }

  /**
   * @param {{entry: Entry, question: string}[]} asked
   * @param {import("./api.js").Described} described
   */
  #take(asked, { captions, timing_ms }) {
    asked.forEach(({ entry, question }, index) => this.#answers.set(entry.id, { question, caption: captions[index] }));
    this.timing = { ...this.timing, describe: timing_ms.describe, count: asked.length };
    this.onChange();
  }

  /**
   * @param {Region[]} regions
   * @param {object} options
   */
  #ask(regions, options) {
    const pooled = regions.map((region) => withPool(region, this.settings));
    return this.#withFeatures((id) => this.service.describe(id, pooled, options));
  }

  /**
   * Call the service about the encoded image; if it has dropped that, once more after encoding it again.
   * @template T
   * @param {(id: string) => Promise<T>} call
   * @param {number} tries
   * @returns {Promise<T>}
   */
  async #withFeatures(call, tries = 2) {
    while (!this.#features) await this.#encode();
    const id = this.#features;
    const answer = call(id); // without a pause before: whoever drops the image waits for the calls that were begun
    this.#calls.add(answer);
    try {
      return await answer;
    } catch (/** @type {any} */ error) {
      if (error.status !== 404 || tries === 1) throw error;
      if (this.#features === id) {
        this.#features = null;
        this.onSaid("The service has dropped the image: encoding it again.");
      }
      return this.#withFeatures(call, tries - 1);
    } finally {
      this.#calls.delete(answer);
    }
  }

  /** @param {Entry} entry */
  #question({ region }) {
    return JSON.stringify([withPool(region, this.settings), this.#options()]);
  }

  #options() {
    return { ...optionsOf(this.settings), ...(this.can.nearest ? { n_best: NUM_NEAREST } : {}) };
  }

  /**
   * Do some work; its error is shown, unless the image is another by then.
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T | undefined>}
   */
  async #reported(work) {
    const { picture } = this;
    try {
      const result = await work();
      this.onWorked();
      return result;
    } catch (error) {
      if (this.picture === picture) this.onError(/** @type {Error} */ (error));
      return undefined;
    }
  }
}

/**
 * Refuse an image of which the browser shows something else than the service sees: regions would lie elsewhere.
 * @param {Picture} picture
 * @param {{width: number, height: number}} seen
 */
function checkSize({ name, width, height }, seen) {
  if (seen.width === width && seen.height === height) return;
  const sizes = `${seen.width} × ${seen.height} pixels to the service, ${width} × ${height} to the browser`;
  throw new Error(`${name}: it has ${sizes}: convert it to JPEG or PNG.`);
}

function firstPools() {
  return Object.fromEntries(Object.entries(POOLS).map(([group, [first]]) => [group, first]));
}

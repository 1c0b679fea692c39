// @ts-check
/**
 * The client of the service: its calls, its errors in one line, and a queue in which the latest wins.
 *
 * @typedef {import("./regions.js").Region} Region
 * @typedef {{text: string, score: number | null, nearest?: {text: string, similarity: number}[], error?: string}} Caption
 * @typedef {{captions: Caption[], timing_ms: {encode?: number, describe: number}}} Described
 * @typedef {{id: string, image: {width: number, height: number}, timing_ms: {encode: number}}} Features
 * @typedef {{rows: number, columns: number, xyxy: number[], weights: number[][]}} Attention
 */

/** How often a call is tried again that the service has no room for. */
const MAX_TRIES = 5;
const TOKEN_KEY = "patchcaption-token";

/** An answer that is none: ``status`` is HTTP's, 0 if the service cannot be reached. */
export class ServiceError extends Error {
  /**
   * @param {number} status
   * @param {string} message one line
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The service that this page comes from. */
export class Service {
  /** @param {(message: string) => void} onBusy called before each wait for room */
  constructor(onBusy) {
    this.onBusy = onBusy;
  }

  get token() {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  }

  set token(token) {
    sessionStorage.setItem(TOKEN_KEY, token);
  }

  info() {
    return this.#call("GET", "/v1/info");
  }

  /**
   * @param {Blob} image
   * @returns {Promise<Features>}
   */
  encode(image) {
    return this.#call("POST", "/v1/features", formOf({ image }));
  }

  /**
   * @param {string} id of an encoded image
   * @param {Region[]} regions
   * @param {object} options
   * @returns {Promise<Described>}
   */
  describe(id, regions, options) {
    return this.#call("POST", `/v1/features/${id}/captions`, JSON.stringify({ regions, options }));
  }

  /**
   * @param {Blob} image
   * @param {Region[]} regions
   * @param {object} options
   * @returns {Promise<Described>}
   */
  caption(image, regions, options) {
    const parts = { image, regions: JSON.stringify(regions), options: JSON.stringify(options) };
    return this.#call("POST", "/v1/captions", formOf(parts));
  }

  /**
   * @param {string} id
   * @returns {Promise<Attention>}
   */
  attention(id) {
    return this.#call("GET", `/v1/features/${id}/attention`);
  }

  /**
   * Let the service drop an encoded image, also while the page is being left. That it is gone already does not matter.
   * @param {string} id
   */
  forget(id) {
    fetch(`/v1/features/${id}`, { method: "DELETE", headers: this.#headers(), keepalive: true }).catch(() => undefined);
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {FormData | string} [body]
   */
  async #call(method, path, body) {
    for (let tries = 1; ; tries += 1) {
      const response = await this.#fetch(method, path, body);
      if (response.ok) return response.json();
      if (response.status !== 429 || tries === MAX_TRIES) throw await errorOf(response);
      const seconds = Math.max(1, Number(response.headers.get("Retry-After")) || 1);
      this.onBusy(`The service is busy: trying again in ${seconds} s.`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {FormData | string} [body]
   */
  async #fetch(method, path, body) {
    const headers = this.#headers();
    if (typeof body === "string") headers.set("Content-Type", "application/json");
    try {
      return await fetch(path, { method, headers, body });
    } catch {
      throw new ServiceError(0, "The service does not answer: it has ended, or the network is down.");
    }
  }

  #headers() {
    const headers = new Headers({ Accept: "application/json" });
    if (this.token) headers.set("Authorization", `Bearer ${this.token}`);
    return headers;
  }
}

/** Runs one job at a time; of those that are asked for meanwhile, only the latest. @template T */
export class Latest {
  #isRunning = false;
  /** @type {T | undefined} */
  #next;

  /** @param {(job: T) => Promise<void>} run which deals with its own errors */
  constructor(run) {
    this.run = run;
  }

  /** @param {T} job */
  async ask(job) {
    this.#next = job;
    if (this.#isRunning) return;
    this.#isRunning = true;
    try {
      while (this.#next !== undefined) await this.run(this.#take());
    } finally {
      this.#isRunning = false;
    }
  }

  /** Drop what waits. */
  clear() {
    this.#next = undefined;
  }

  /** @returns {T} */
  #take() {
    const job = /** @type {T} */ (this.#next);
    this.#next = undefined;
    return job;
  }
}

/** @param {Record<string, Blob | string>} parts */
function formOf(parts) {
  const form = new FormData();
  for (const [name, part] of Object.entries(parts)) form.append(name, part);
  return form;
}

/** @param {Response} response */
async function errorOf(response) {
  const answer = await response.json().catch(() => ({}));
  return new ServiceError(response.status, answer.error ?? `The service answers ${response.status} ${response.statusText}.`);
}

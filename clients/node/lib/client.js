// @ts-check

import { Away, Broker } from "./broker.js";
import { checkPrefix } from "./broker_url.js";
import { BrokerAwayError, InvalidJobError, NoAnswerError } from "./errors.js";
import { check, checkKey, isSend, jobName, JobProblem, makeMessage } from "./message.js";

/** @typedef {import("./message.js").Message} Message */
/** @typedef {import("../index.d.ts").Producer} Producer */

const OPTIONS = ["ca", "key", "keyPrefix", "resultsUrl", "sentinelMaster", "sentinelPassword"];
/** Jobs published in one round trip, at most, and characters: large emails must not fill the memory. */
const JOBS_BATCH = 500;
const CHARACTERS_BATCH = 4_000_000;
const TIMEOUT_MAX_MS = 2 ** 31 - 1;

/** @implements {Producer} */
export class PostageClient {
  #broker;
  #results;
  #key;
  #prefix;

  /**
   * @param {string} brokerUrl
   * @param {import("../index.d.ts").ClientOptions} options
   */
  constructor(brokerUrl, options = {}) {
    const unknown = Object.keys(options).filter((name) => !OPTIONS.includes(name));
    if (unknown.length) throw new TypeError(`There is no option ${unknown[0]}; the options are ${OPTIONS.join(", ")}.`);
    const { keyPrefix = "", resultsUrl, sentinelMaster = "mymaster", sentinelPassword, ca } = options;
    this.#prefix = checkPrefix(keyPrefix);
    this.#key = checkKey(options.key);
    const reaching = { sentinelMaster, sentinelPassword, ca };
    this.#broker = new Broker(brokerUrl, reaching);
    this.#results = resultsUrl === undefined ? this.#broker : new Broker(resultsUrl, reaching);
  }

  /**
   * @param {string} task
   * @param {object} job
   * @param {object} options
   */
  async send(task, job, options = {}) {
    const [id] = await this.sendMany(/** @type {any} */ ([[task, job, options]]));
    return id;
  }

  /** @param {Iterable<readonly [any, any, any?]> | AsyncIterable<readonly [any, any, any?]>} jobs */
  async sendMany(jobs) {
    /** @type {string[]} */
    const ids = [];
    if (Array.isArray(jobs)) jobs.forEach((job, index) => named(job, index, 0, check)); // before any is published
    for await (const batch of this.#batches(jobs, () => ids.length)) {
      await this.#publish(batch, ids.length);
      for (const message of batch) ids.push(message.id);
    }
    return ids;
  }

  /**
   * @param {string} task
   * @param {object} job
   * @param {any} options
   * @returns {Promise<any>}
   */
  async ask(task, job, { timeout = 30_000, ...options } = {}) {
    if (isSend(task)) {
      throw new InvalidJobError(
        `${task} keeps no answer to wait for: send it, and ask views.message.`,
        0,
        jobName(task, job),
      );
    }
    if (!(typeof timeout === "number" && timeout > 0 && timeout <= TIMEOUT_MAX_MS)) {
      throw new InvalidJobError("`timeout`: must be a number of milliseconds above 0.", 0, jobName(task, job));
    }
    const write = (/** @type {[any, any, any]} */ ...given) => this.#written(given, { keepsAnswer: true });
    const message = named([task, job, options], 0, 0, write);
    const key = `${this.#prefix}celery-task-meta-${message.id}`;
    let published = false;
    const publish = async () => {
      await this.#publish([message], 0);
      published = true;
    };
    try {
      const answer = await this.#results.receive(key, publish, readAnswer, timeout);
      if (answer === undefined) {
        throw new NoAnswerError(`There is no answer after ${timeout / 1000} s: is a worker running?`);
      }
      if (answer.status === "SUCCESS") return answer.result;
      const error = /^\w{1,64}$/.test(answer.result?.exc_type) ? ` (${answer.result.exc_type})` : "";
      throw new NoAnswerError(`A worker could not do ${task}${error}, and its log says why.`);
    } catch (error) {
      if (!(error instanceof Away)) throw error;
      if (!published) throw new BrokerAwayError(this.#results.name, error.message);
      throw new NoAnswerError(`The broker went away before the answer came: ${error.message}.`);
    }
  }

  async close() {
    await Promise.all([this.#broker.close(), this.#results.close()]);
  }

  /**
   * @param {Iterable<any> | AsyncIterable<any>} jobs
   * @param {() => number} published
   */
  async *#batches(jobs, published) {
    /** @type {Message[]} */
    let batch = [];
    let characters = 0;
    let index = 0;
    for await (const job of jobs) {
      const message = named(job, index++, published(), (...given) => this.#written(given));
      batch.push(message);
      characters += message.text.length;
      if (batch.length === JOBS_BATCH || characters >= CHARACTERS_BATCH) {
        yield batch;
        [batch, characters] = [[], 0];
      }
    }
    if (batch.length) yield batch;
  }

  /**
   * @param {[any, any, any]} job
   * @param {import("./message.js").Writing} how
   */
  #written(job, how = {}) {
    return makeMessage(...job, { ...how, key: this.#key });
  }

  /**
   * @param {Message[]} batch
   * @param {number} before
   */
  async #publish(batch, before) {
    /** @type {Map<string, string[]>} */
    const lists = new Map();
    for (const { list, text } of batch) {
      const key = this.#prefix + list;
      const texts = lists.get(key);
      if (texts) texts.push(text);
      else lists.set(key, [text]);
    }
    try {
      await this.#broker.push(lists);
    } catch (error) {
      if (!(error instanceof Away)) throw error;
      throw new BrokerAwayError(this.#broker.name, error.message, before, error.sent ? batch.length : 0);
    }
  }
}

/**
 * Do something with a job, and name the job if it is wrong.
 *
 * @template T
 * @param {any} job
 * @param {number} index
 * @param {number} published
 * @param {(task: string, object: any, options: any) => T} what
 * @returns {T}
 */
function named(job, index, published, what) {
  if (!Array.isArray(job) || typeof job[0] !== "string") {
    throw new InvalidJobError("a job is [task, object] or [task, object, options].", index, "", published);
  }
  const [task, object, options] = job;
  try {
    return what(task, object, options ?? {});
  } catch (error) {
    if (!(error instanceof JobProblem)) throw error;
    throw new InvalidJobError(error.message, index, jobName(task, object), published);
  }
}

/**
 * What a worker has written, as Celery's result backend keeps it, if it is the end: `RETRY` is not.
 *
 * @param {string} text
 * @returns {{status: string, result: any} | undefined}
 */
function readAnswer(text) {
  try {
    const answer = JSON.parse(text);
    return ["SUCCESS", "FAILURE", "REVOKED"].includes(answer?.status) ? answer : undefined;
  } catch {
    return undefined;
  }
}

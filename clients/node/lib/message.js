// @ts-check
// How a job is written: the message protocol of Celery, version 2, as kombu puts it on a Redis list.
// https://docs.celeryq.dev/en/stable/internals/protocol.html

import { createHmac, randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { ID, ID_FIELDS, NEEDED, OPTIONAL, QUEUES, SEND_TASKS, USER_FIELDS } from "./contract.js";

const OPTIONS = ["eta", "expires", "priority"];
const NO_KEY = "`job_id`: must be there, made before the first try: with it, publishing a job again is harmless.";
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)$/;
const NAME_MAX = 64;
/** The lists of kombu: 0 is the queue itself, and is taken first. */
const PRIORITY_STEPS = [0, 3, 6, 9];
const LIST_SEPARATOR = "\x06\x16";
/** What is signed, and how: another way of signing will have another name. */
const SCHEME = "postage-1";
const ORIGIN = `${process.pid}@${hostname()}`;
const REPLY_TO = randomUUID();

/**
 * A job as it is pushed onto a list.
 *
 * @typedef {object} Message
 * @property {string} id The Celery task id.
 * @property {string} list The list, without the prefix.
 * @property {string} text
 */

/**
 * What is wrong with a job, in a sentence that repeats no value.
 */
export class JobProblem extends Error {}

/**
 * Check a job as far as it can be done without the server's code: its task, the names of its fields, and its options.
 *
 * @param {string} task
 * @param {any} job
 * @param {any} options
 * @returns {asserts task is import("./contract.js").Task}
 */
export function check(task, job, options) {
  if (!Object.hasOwn(QUEUES, task)) throw new JobProblem(`the tasks are ${Object.keys(QUEUES).join(", ")}.`);
  if (job === null || typeof job !== "object" || Array.isArray(job)) {
    throw new JobProblem(`${task} takes one object.`);
  }
  const known = /** @type {import("./contract.js").Task} */ (task);
  const given = Object.keys(job).filter((name) => job[name] !== undefined);
  for (const name of NEEDED[known]) {
    if (!given.includes(name) || job[name] === null) {
      throw new JobProblem(isSend(task) && name === "job_id" ? NO_KEY : `\`${printable(name)}\`: Field required.`);
    }
  }
  for (const name of given) {
    if (!NEEDED[known].includes(name) && !OPTIONAL[known].includes(name)) {
      throw new JobProblem(`\`${printable(name)}\`: ${task} has no such field.`);
    }
  }
  checkOptions(options);
}

/** @param {any} options */
function checkOptions(options) {
  for (const name of Object.keys(options)) {
    if (!OPTIONS.includes(name)) {
      throw new JobProblem(`\`${printable(name)}\` is no option of a job; the options are ${OPTIONS.join(", ")}.`);
    }
  }
  isoTime("eta", options.eta);
  isoTime("expires", options.expires);
  if (![undefined, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9].includes(options.priority)) {
    throw new JobProblem("`priority`: must be a whole number from 0 (comes first) to 9.");
  }
}

/** @param {string} task */
export const isSend = (task) => SEND_TASKS.includes(task);

/**
 * How messages of a client are written.
 *
 * @typedef {object} Writing
 * @property {import("../index.d.ts").ProducerKey} [key] With it, every message is signed.
 * @property {boolean} [keepsAnswer]
 */

/**
 * Write a job as Celery's own client does. Body and headers of a message are made here and nowhere else.
 *
 * @param {string} task
 * @param {any} job
 * @param {any} options
 * @param {Writing} how
 * @returns {Message}
 */
export function makeMessage(task, job, options = {}, { key, keepsAnswer = false } = {}) {
  check(task, job, options);
  const id = randomUUID();
  const body = bodyOf(job);
  const headers = {
    ...headersOf(task, id, job, options, !keepsAnswer),
    ...(key && { postage: signature(key, task, id, body) }),
  };
  const priority = options.priority ?? 0;
  const queue = QUEUES[task];
  const properties = {
    correlation_id: id,
    reply_to: REPLY_TO,
    argsrepr: headers.argsrepr,
    delivery_mode: 2,
    delivery_info: { exchange: "", routing_key: queue },
    priority,
    body_encoding: "base64",
    delivery_tag: randomUUID(),
  };
  const text = JSON.stringify({
    body: body.toString("base64"),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    headers,
    properties,
  });
  const step = PRIORITY_STEPS.findLast((each) => each <= priority);
  return { id, list: step ? `${queue}${LIST_SEPARATOR}${step}` : queue, text };
}

/**
 * The bytes of the body: positional arguments, keyword arguments, and what to call next.
 *
 * @param {any} job
 * @returns {Buffer}
 */
function bodyOf(job) {
  try {
    return Buffer.from(JSON.stringify([[job], {}, { callbacks: null, errbacks: null, chain: null, chord: null }]));
  } catch {
    throw new JobProblem("it cannot be written as JSON: it has a BigInt, or contains itself.");
  }
}

/**
 * The header that proves which producer made a message.
 *
 * @param {import("../index.d.ts").ProducerKey} key
 * @param {string} task
 * @param {string} id
 * @param {Buffer} body
 */
function signature(key, task, id, body) {
  const at = Math.floor(Date.now() / 1000);
  const lines = [SCHEME, key.id, task, id, at, ""].join("\n");
  return { key: key.id, at, mac: createHmac("sha256", key.secret).update(lines).update(body).digest("hex") };
}

/**
 * @param {unknown} key
 * @returns {import("../index.d.ts").ProducerKey | undefined}
 */
export function checkKey(key) {
  if (key === undefined) return undefined;
  const { id, secret } = /** @type {any} */ (key ?? {});
  if (typeof id !== "string" || !ID.test(id) || typeof secret !== "string" || secret === "") {
    throw new TypeError("key: it is {id, secret}, as `postage keys new` has shown them");
  }
  return { id, secret };
}

/**
 * @param {string} task
 * @param {string} id
 * @param {any} job
 * @param {any} options
 * @param {boolean} ignoreResult
 */
function headersOf(task, id, job, options, ignoreResult) {
  return {
    lang: "js",
    task,
    id,
    shadow: null,
    eta: isoTime("eta", options.eta),
    expires: isoTime("expires", options.expires),
    group: null,
    group_index: null,
    retries: 0,
    timelimit: [null, null],
    root_id: id,
    parent_id: null,
    argsrepr: redactedArgs(job),
    kwargsrepr: "{}",
    origin: ORIGIN,
    ignore_result: ignoreResult,
    replaced_task_nesting: 0,
    stamped_headers: null,
    stamps: {},
  };
}

/**
 * What Flower may show of a message: its id and its sender.
 *
 * @param {any} job
 */
export function redactedArgs(job) {
  return `(job=${firstId(job, ID_FIELDS) ?? "-"}, sender=${firstId(job, USER_FIELDS) ?? "-"})`;
}

/**
 * @param {any} job
 * @param {readonly string[]} fields
 * @returns {string | undefined}
 */
function firstId(job, fields) {
  return fields.map((field) => job?.[field]).find((value) => typeof value === "string" && ID.test(value));
}

/**
 * How an error names a job.
 *
 * @param {unknown} task
 * @param {any} job
 */
export const jobName = (task, job) => `${printable(String(task))}, ${firstId(job, ID_FIELDS) ?? "no valid id"}`;

/** @param {string} text */
const printable = (text) => text.slice(0, NAME_MAX).replace(/[^\x20-\x7e]/g, "?");

/**
 * @param {string} name
 * @param {unknown} value
 * @returns {string | null}
 */
function isoTime(name, value) {
  if (value === undefined || value === null) return null;
  if (value instanceof Date && !Number.isNaN(value.getTime())) return value.toISOString().replace("Z", "+00:00");
  if (typeof value === "string" && TIME.test(value) && !Number.isNaN(Date.parse(value))) {
    return value.replace("Z", "+00:00");
  }
  throw new JobProblem(`\`${name}\`: must be a Date, or ISO 8601 with a zone, such as 2026-12-01T10:00:00+01:00.`);
}

// @ts-check

import { DisconnectsClientError } from "@redis/client";

/** Only the first `published` jobs were enqueued. The message says what happened, and repeats nothing private. */
export class EnqueueError extends Error {
  published = 0;

  get name() {
    return this.constructor.name;
  }
}

/** The job at `index` is not valid, or an option of it. No job of its batch was published. */
export class InvalidJobError extends EnqueueError {
  /**
   * @param {string} why
   * @param {number} index
   * @param {string} job
   * @param {number} published
   */
  constructor(why, index = 0, job = "", published = 0) {
    super(`jobs[${index}]${job && ` (${job})`} is not valid: ${why} ${soFar(published)}`);
    this.why = why;
    this.index = index;
    this.published = published;
  }
}

/** The broker could not be used. Of the `uncertain` jobs after the published ones, some may have been published. */
export class BrokerAwayError extends EnqueueError {
  /**
   * @param {string} broker
   * @param {string} why
   * @param {number} published
   * @param {number} uncertain
   */
  constructor(broker, why, published = 0, uncertain = 0) {
    super(
      `The broker ${broker} cannot be used: ${why}. ${soFar(published, uncertain)} ` +
        "Enqueue the others, or simply all, again as they are: the same id is never charged or sent twice.",
    );
    this.broker = broker;
    this.why = why;
    this.published = published;
    this.uncertain = uncertain;
  }
}

/** A job was enqueued, and its answer has not come, or cannot be read. The message says what to do. */
export class NoAnswerError extends EnqueueError {
  published = 1;

  /** @param {string} what */
  constructor(what) {
    super(`${what} Ask again: a purchase or change under the same id is done once, and a view changes nothing.`);
  }
}

/**
 * @param {number} published
 * @param {number} uncertain
 */
function soFar(published, uncertain = 0) {
  if (uncertain === 0) return published ? `The first ${published} jobs were published.` : "Nothing was published.";
  if (published === 0) return `Of the first ${uncertain} jobs some may have been published.`;
  return `The first ${published} jobs were published, and of the next ${uncertain} some may have been.`;
}

/**
 * What the broker or its driver said, on one line. Redis repeats the arguments of a command that it does not know.
 *
 * @param {any} error
 * @returns {string}
 */
export function words(error) {
  const [cause] = error?.errors ?? [error]; // `localhost` has two addresses, and so two errors
  if (cause instanceof DisconnectsClientError) return "the connection was given up before it answered";
  const said = String(cause?.message || cause?.code || cause);
  return said.replace(/, with args beginning with:.*/s, "").replace(/\s+/g, " ").slice(0, 200).replace(/\.$/, "");
}

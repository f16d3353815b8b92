import type { Answers, Messages, SendTask, Task } from "./lib/contract.js";

export type * from "./lib/contract.js";

/** A producer's key, as `postage keys new` has shown it. */
export interface ProducerKey {
  id: string;
  secret: string;
}

/** How to reach the broker, in the words of Postage's settings. */
export interface ClientOptions {
  /** With it, every message is signed. */
  key?: ProducerKey;
  /** `POSTAGE_KEY_PREFIX`: before every key and channel, as in `shop-1:`. */
  keyPrefix?: string;
  /** `POSTAGE_RESULT_URL`, if answers are kept elsewhere than on the broker. */
  resultsUrl?: string;
  /** `POSTAGE_SENTINEL_MASTER`: the name Sentinels know the broker by. `mymaster` if left out. */
  sentinelMaster?: string;
  /** `POSTAGE_SENTINEL_PASSWORD`: password of the Sentinels themselves. */
  sentinelPassword?: string;
  /** The CA of a `rediss://` broker, as PEM. Node's own CAs if left out; certificates are always verified. */
  ca?: string | Uint8Array;
}

/** Options of Celery's, beside the message. Times are `Date`s, or ISO 8601 with a zone. */
export interface JobOptions {
  /** Not before then. */
  eta?: Date | string;
  /** The job is refused as `expired` if no worker has begun it by then. */
  expires?: Date | string;
  /** 0 (comes first; the default) to 9. */
  priority?: number;
}

export interface AskOptions extends JobOptions {
  /** How long to wait for the answer, in milliseconds. 30,000 if left out. */
  timeout?: number;
}

/** The tasks whose answer can be waited for. */
export type AskTask = Exclude<Task, SendTask>;

/** A task, its message, and perhaps options. */
export type Job = { [T in Task]: readonly [task: T, job: Messages[T], options?: JobOptions] }[Task];

export interface Producer {
  /**
   * Put one job on its queue. Gives its Celery task id. Fails as `sendMany` does.
   */
  send<T extends Task>(task: T, job: Messages[T], options?: JobOptions): Promise<string>;

  /**
   * Put jobs on their queues, 500 a round trip. Gives their Celery task ids, in order.
   *
   * All jobs of an array are checked before the first is published; those of other iterables batch by batch.
   *
   * @throws {InvalidJobError} Naming the first job with a field too few or too many, or a send job without `job_id`.
   * @throws {BrokerAwayError} Saying how much was published. The same jobs can be sent again.
   */
  sendMany(jobs: Iterable<Job> | AsyncIterable<Job>): Promise<string[]>;

  /**
   * Put a purchase, a change, a save or a view on its queue, and wait for its answer.
   *
   * @throws {InvalidJobError} As `sendMany`.
   * @throws {BrokerAwayError} As `sendMany`.
   * @throws {NoAnswerError} If no answer has come in time, or the broker went away meanwhile.
   */
  ask<T extends AskTask>(task: T, job: Messages[T], options?: AskOptions): Promise<Answers[T]>;

  /** Close the connection. What still waits for an answer fails. */
  close(): Promise<void>;
}

/** A producer. It connects when it is first used, and again after a connection was lost. */
export declare class PostageClient implements Producer {
  /** @throws {TypeError} If the URL or an option cannot be used. It repeats nothing of the URL. */
  constructor(brokerUrl: string, options?: ClientOptions);
  send<T extends Task>(task: T, job: Messages[T], options?: JobOptions): Promise<string>;
  sendMany(jobs: Iterable<Job> | AsyncIterable<Job>): Promise<string[]>;
  ask<T extends AskTask>(task: T, job: Messages[T], options?: AskOptions): Promise<Answers[T]>;
  close(): Promise<void>;
}

/** Only the first `published` jobs were enqueued. The message says what happened, and repeats nothing private. */
export declare class EnqueueError extends Error {
  published: number;
}

/** The job at `index` (from 0) is not valid, and `why` says why. No job of its batch was published. */
export declare class InvalidJobError extends EnqueueError {
  index: number;
  why: string;
}

/** The broker could not be used. Of the `uncertain` jobs after the published ones, some may have been published. */
export declare class BrokerAwayError extends EnqueueError {
  broker: string;
  why: string;
  uncertain: number;
}

/** A job was enqueued, and its answer has not come, or cannot be read. The message says what to do. */
export declare class NoAnswerError extends EnqueueError {}

// @ts-check

import { isIP } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@redis/client";
import { readUrl } from "./broker_url.js";
import { words } from "./errors.js";

/** Pauses before each try: after four tries within a second or so the broker counts as away. */
const TRIES_MS = [0, 200, 400, 500];
/** The pause after a connection was lost, so that a broker that drops every one is not asked without end. */
const LOST_MS = 100;
const CONNECT_MS = 5_000;
/** How long the broker, and a Sentinel, may take for an answer. */
const ANSWER_MS = 30_000;
const SENTINEL_MS = 2_000;
/** What the driver tells when it has lost a connection, and when it has closed one. */
const ENDS = ["terminated", "end"];
const CLOSED = "the client was closed";
/** What a server says that is not the broker any more, or not yet. */
const NOT_THE_BROKER = /^(READONLY|LOADING|MASTERDOWN|NOAUTH)/;

/** The broker cannot be used, `why` says why. `sent`: it may still have done what it was told. */
export class Away extends Error {
  /**
   * @param {string} why
   * @param {boolean} sent
   */
  constructor(why, sent) {
    super(why);
    this.sent = sent;
  }
}

/**
 * A connection to a broker: made when it is needed, and made again after it was lost, where the Sentinels say then.
 *
 * The driver would reconnect by itself and keep commands meanwhile, without a limit that a caller could rely on.
 */
export class Broker {
  /** @type {any} */
  #client;
  /** @type {Promise<any> | undefined} */
  #connecting;
  #closed = false;
  #place;
  #options;

  /**
   * @param {string} url
   * @param {{sentinelMaster: string, sentinelPassword?: string, ca?: string | Uint8Array}} options
   */
  constructor(url, options) {
    this.#place = readUrl(url, options.sentinelMaster);
    this.#options = options;
  }

  get name() {
    return this.#place.name;
  }

  /**
   * Push texts onto lists, in one round trip.
   *
   * @param {Map<string, string[]>} lists
   */
  async push(lists) {
    const client = await this.#connection();
    await this.#answered(
      client,
      // Commands of one turn of the event loop go out together.
      Promise.all([...lists].map(([list, texts]) => client.lPush(list, texts))),
    );
  }

  /**
   * Wait for what is kept under a key, and published on the channel of that name when it is.
   *
   * @template T
   * @param {string} key
   * @param {() => Promise<void>} ask What makes somebody write it; called once, after the subscription.
   * @param {(text: string) => T | undefined} read What a text says; undefined if it is not what is waited for.
   * @param {number} timeout In milliseconds, after `ask`.
   * @returns {Promise<T | undefined>} Undefined if nothing came in time.
   */
  async receive(key, ask, read, timeout) {
    /** @type {number | undefined} */
    let until;
    do {
      const client = await this.#connection();
      /** @type {(text?: string) => void} */
      let hear = () => {};
      const heard = new Promise((resolve) => {
        hear = (text) => {
          const said = text === undefined ? undefined : read(text);
          if (text === undefined || said !== undefined) resolve(said);
        };
      });
      const lost = () => hear();
      for (const event of ENDS) client.once(event, lost);
      try {
        await this.#answered(client, client.subscribe(key, hear));
        if (until === undefined) {
          await ask();
          until = Date.now() + timeout;
        }
        const kept = await this.#answered(client, client.get(key)); // it came before the subscription
        if (kept !== null) hear(kept);
        const said = await within(until - Date.now(), heard);
        if (said !== undefined) return said;
      } catch (error) {
        if (until === undefined || !(error instanceof Away)) throw error; // else the connection was lost: once more
        if (client.isReady) throw error;
      } finally {
        for (const event of ENDS) client.off(event, lost);
        if (client.isReady) client.unsubscribe(key, hear).catch(() => {});
      }
      await sleep(LOST_MS);
    } while (Date.now() < until);
    return undefined;
  }

  /** Close the connection. */
  async close() {
    this.#closed = true;
    const client = await this.#connecting?.catch(() => undefined);
    for (const each of new Set([client, this.#client])) if (each?.isOpen) each.destroy();
  }

  /** @returns {Promise<any>} */
  async #connection() {
    if (this.#closed) throw new Away(CLOSED, false);
    if (this.#client?.isReady) return this.#client;
    this.#connecting ??= this.#connect().finally(() => (this.#connecting = undefined));
    this.#client = await this.#connecting;
    return this.#client;
  }

  async #connect() {
    /** @type {any} */
    let error;
    for (const pause of TRIES_MS) {
      await sleep(pause);
      if (this.#closed) throw new Away(CLOSED, false);
      try {
        return await this.#open();
      } catch (why) {
        error = why;
      }
    }
    throw new Away(words(error), false);
  }

  async #open() {
    const { host, port, database, username, password, tls, sentinels } = this.#place;
    const at = sentinels.length ? await this.#askSentinels() : { host, port };
    const secure = tls
      ? { tls: true, rejectUnauthorized: true, ca: this.#options.ca, servername: isIP(at.host) ? undefined : at.host }
      : {};
    return opened({ socket: { ...at, ...secure }, username, password, database }, CONNECT_MS);
  }

  /** Ask the first Sentinel that answers where the broker is. */
  async #askSentinels() {
    /** @type {any} */
    let error;
    for (const at of this.#place.sentinels) {
      try {
        const login = { password: this.#options.sentinelPassword };
        const client = await opened({ socket: { ...at }, ...login, RESP: 2 }, SENTINEL_MS);
        try {
          const question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", this.#options.sentinelMaster];
          const found = await within(SENTINEL_MS, client.sendCommand(question));
          if (Array.isArray(found)) return { host: String(found[0]), port: Number(found[1]) };
          error = new Error("its Sentinels know no broker of that name (`sentinelMaster`)");
        } finally {
          client.destroy();
        }
      } catch (why) {
        error ??= new Error(`Sentinel ${at.host}:${at.port} says ${words(why)}`);
      }
    }
    throw error;
  }

  /**
   * What the broker answers, if it does in time.
   *
   * @param {any} client
   * @param {Promise<any>} answer
   */
  async #answered(client, answer) {
    try {
      const given = await within(ANSWER_MS, answer.then((value) => ({ value })));
      if (given) return given.value;
    } catch (error) {
      if (NOT_THE_BROKER.test(words(error)) && client.isOpen) client.destroy();
      throw new Away(words(error), true);
    }
    if (client.isOpen) client.destroy(); // what it has not answered it would answer to somebody else
    throw new Away(`it does not answer within ${ANSWER_MS / 1000} s`, true);
  }
}

/**
 * An open connection, which is not made again by itself.
 *
 * @param {any} options
 * @param {number} timeout
 */
async function opened(options, timeout) {
  const client = createClient({
    ...options,
    socket: { ...options.socket, connectTimeout: timeout, reconnectStrategy: false },
    disableClientInfo: true, // else two more commands, which users of the broker may not be allowed
    maintNotifications: "disabled",
  });
  client.setMaxListeners(0); // one for each answer that is waited for
  client.on("error", () => {}); // whoever waits for an answer is told
  const connected = client.connect().then(() => client);
  const done = await within(timeout, connected).catch((error) => {
    if (client.isOpen) client.destroy();
    throw error;
  });
  if (done) return done;
  connected.catch(() => {});
  if (client.isOpen) client.destroy();
  throw new Error(`no connection within ${timeout / 1000} s`);
}

/**
 * What a promise gives, or undefined after so many milliseconds.
 *
 * @template T
 * @param {number} ms
 * @param {Promise<T>} work
 * @returns {Promise<T | undefined>}
 */
async function within(ms, work) {
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  try {
    return await Promise.race([work, new Promise((resolve) => (timer = setTimeout(resolve, Math.max(0, ms))))]);
  } finally {
    clearTimeout(timer);
  }
}

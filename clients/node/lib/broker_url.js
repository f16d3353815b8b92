// @ts-check

const SENTINEL = "sentinel://";
const SENTINEL_PORT = 26379;
const PREFIX = /^([A-Za-z0-9._:-]{0,63}[._:-])?$/;

/**
 * Where a broker is: at one address, or where Sentinels say.
 *
 * @typedef {object} Place
 * @property {string} name For people: without user and password.
 * @property {{host: string, port: number}[]} sentinels None: the broker itself is at `host` and `port`.
 * @property {string} host
 * @property {number} port
 * @property {number} database
 * @property {string | undefined} username
 * @property {string | undefined} password
 * @property {boolean} tls
 */

/**
 * Read a broker's URL, as `POSTAGE_BROKER_URL` has it. Errors repeat nothing of it, since it may hold a password.
 *
 * @param {string} url
 * @param {string} master
 * @returns {Place}
 */
export function readUrl(url, master) {
  const text = typeof url === "string" ? url.trim() : "";
  if (text.startsWith(SENTINEL)) return readSentinels(text, master);
  const part = parse(text);
  if (part === undefined || !["redis:", "rediss:"].includes(part.protocol)) {
    throw wrong(
      "it must be redis://[user:password@]host:port/0, rediss://… or sentinel://…;sentinel://…, " +
        "with signs such as / # % @ in a password percent-encoded",
    );
  }
  if (part.search || part.hash) throw wrong("it has nothing behind the number of the database; a CA is the option `ca`");
  const host = hostOf(part) || "localhost";
  const port = Number(part.port || 6379);
  const database = databaseOf(part.pathname);
  return {
    name: `at ${address(host, port)}/${database}`,
    sentinels: [],
    host,
    port,
    database,
    ...login(part),
    tls: part.protocol === "rediss:",
  };
}

/**
 * @param {string} url
 * @param {string} master
 * @returns {Place}
 */
function readSentinels(url, master) {
  const parts = url
    .split(";")
    .filter(Boolean)
    .map((part) => parse(part.includes("://") ? part : SENTINEL + part));
  const read = parts.filter((part) => part !== undefined);
  if (read.length < parts.length || read.some((part) => !isSentinel(part))) {
    throw wrong("each part of it must be sentinel://[user:password@]host:port[/database], with nothing behind (no TLS)");
  }
  const userinfo = only("user and password", read, (part) => (part.username || part.password ? part : undefined), login);
  const path = only("database number", read, (part) => part.pathname.replace(/^\/|\/$/g, ""), String);
  const sentinels = read.map((part) => ({ host: hostOf(part), port: Number(part.port || SENTINEL_PORT) }));
  const addresses = sentinels.map(({ host, port }) => address(host, port)).join(", ");
  return {
    name: `${master} of the Sentinels ${addresses}`,
    sentinels,
    host: "",
    port: 0,
    database: databaseOf(path ?? ""),
    ...(userinfo ? login(userinfo) : { username: undefined, password: undefined }),
    tls: false,
  };
}

/** @param {URL} part */
const isSentinel = (part) => part.protocol === "sentinel:" && hostOf(part) !== "" && !part.search && !part.hash;

/**
 * The one value that some of the parts have.
 *
 * @template T
 * @param {string} what
 * @param {URL[]} parts
 * @param {(part: URL) => T | undefined} value
 * @param {(value: T) => unknown} identity
 * @returns {T | undefined}
 */
function only(what, parts, value, identity) {
  const found = new Map();
  for (const each of parts.map(value)) if (each) found.set(JSON.stringify(identity(each)), each);
  if (found.size > 1) throw wrong(`its parts name more than one ${what}; all Sentinels know the same broker`);
  return [...found.values()][0];
}

/** @param {string} path */
function databaseOf(path) {
  const number = path.replace(/^\/|\/$/g, "") || "0";
  if (!/^[0-9]{1,5}$/.test(number)) {
    throw wrong("what follows the address is the number of the broker's database, as in /0");
  }
  return Number(number);
}

/** @param {URL} part */
function login(part) {
  try {
    return {
      username: decodeURIComponent(part.username) || undefined,
      password: decodeURIComponent(part.password) || undefined,
    };
  } catch {
    throw wrong("its user and password must be percent-encoded");
  }
}

/** @param {URL} part */
const hostOf = (part) => part.hostname.replace(/^\[|\]$/g, "");

/**
 * @param {string} host
 * @param {number} port
 */
const address = (host, port) => (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`);

/**
 * @param {string} text
 * @returns {URL | undefined}
 */
function parse(text) {
  try {
    return new URL(text);
  } catch {
    return undefined; // its error repeats the URL
  }
}

/** @param {string} why */
const wrong = (why) => new TypeError(`The broker's URL cannot be used: ${why}.`);

/**
 * @param {string} prefix
 * @returns {string}
 */
export function checkPrefix(prefix) {
  if (typeof prefix !== "string" || !PREFIX.test(prefix)) {
    throw new TypeError("keyPrefix: a prefix is up to 64 letters, digits and ._:- and ends in one of ._:- as in shop-1:");
  }
  return prefix;
}

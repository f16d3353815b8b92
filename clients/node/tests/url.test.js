import assert from "node:assert/strict";
import { test } from "node:test";
import { checkPrefix, readUrl } from "../lib/broker_url.js";
import { PostageClient } from "../index.js";

const plain = (url) => {
  const { name, host, port, database, username, password, tls } = readUrl(url, "mymaster");
  return [name, host, port, database, username, password, tls];
};

test("a URL of one broker is read", () => {
  assert.deepEqual(plain("redis://"), ["at localhost:6379/0", "localhost", 6379, 0, undefined, undefined, false]);
  assert.deepEqual(plain("rediss://mary:p%40%2Fw@[::1]:7/3"), ["at [::1]:7/3", "::1", 7, 3, "mary", "p@/w", true]);
});

test("a URL of Sentinels may have password and database in any part", () => {
  const place = readUrl("sentinel://a;sentinel://:pw@b:5/2;[::1]", "shop");
  assert.equal(place.name, "shop of the Sentinels a:26379, b:5, [::1]:26379");
  assert.deepEqual([place.password, place.database], ["pw", 2]);
  assert.deepEqual(place.sentinels.map(({ host, port }) => `${host} ${port}`), ["a 26379", "b 5", "::1 26379"]);
});

test("what is wrong with a URL is said without repeating it", () => {
  for (const [url, sentence] of [
    [undefined, /must be redis:/],
    ["s3cret", /must be redis:/],
    ["http://:s3cret@host", /must be redis:/],
    ["redis://:s3cret#x@host:6379", /must be redis:|nothing behind/],
    ["redis://:s3cret/@host", /must be redis:|number of the broker/],
    ["redis://:s3cret%@host", /percent-encoded/],
    ["redis://:s3cret@host/x", /number of the broker's database/],
    ["rediss://:s3cret@host/0?ssl_cert_reqs=none", /nothing behind/],
    ["sentinel://:s3cret@a;redis://b", /each part of it/],
    ["sentinel://:s3cret@a;sentinel://:s3cret2@b", /more than one user and password/],
    ["sentinel://:s3cret@a/0;sentinel://b/1", /more than one database number/],
    ["sentinel://:s3cret@a:x", /each part of it/],
  ]) {
    assert.throws(
      () => new PostageClient(url),
      (error) => sentence.test(error.message) && !/s3cret/.test(JSON.stringify([error.message, error.stack, error])),
      url,
    );
  }
});

test("a prefix is what Postage's setting takes", () => {
  assert.equal(checkPrefix("shop-1:"), "shop-1:");
  for (const prefix of ["shop", "shop*:", `${"a".repeat(64)}:`, "a:\n"]) assert.throws(() => checkPrefix(prefix));
});

test("an option that does not exist is named", () => {
  assert.throws(() => new PostageClient("redis://", { prefix: "a:" }), /There is no option prefix; the options are ca, /);
});

test("a key is an id and a secret, and is not repeated", () => {
  new PostageClient("redis://", { key: { id: "shop", secret: "s3cret" } });
  for (const key of [null, "s3cret", { id: "shop" }, { id: "shop\n", secret: "s3cret" }, { id: "shop", secret: "" }]) {
    const wrong = (error) => /^key: it is \{id, secret\}/.test(error.message) && !/s3cret/.test(error.stack);
    assert.throws(() => new PostageClient("redis://", { key }), wrong);
  }
});

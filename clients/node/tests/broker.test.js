// On a real broker, whose URL is in BROKER_URL; CERTIFICATES is a folder with server.pem and server.key.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { after, beforeEach, test } from "node:test";
import { createServer } from "node:tls";
import { createClient } from "@redis/client";
import { BrokerAwayError, InvalidJobError, NoAnswerError, PostageClient } from "../index.js";

const URL_ = process.env.BROKER_URL;
const EMAIL = { sender: "mary", to: "a@b.example", subject: "Hello", text: "Hello" };
const VIEW = { viewer: "mary" };
const redis = await createClient({ url: URL_ }).connect();
const worker = await redis.duplicate().connect();

beforeEach(() => redis.flushAll());
after(() => [redis, worker].forEach((client) => client.destroy()));

/** The jobs on a list, the oldest first. */
const jobsOn = async (list) =>
  (await redis.lRange(list, 0, -1)).reverse().map((text) => JSON.parse(Buffer.from(JSON.parse(text).body, "base64"))[0][0]);

/** Take a task as a worker would. */
async function taken(queue = "views") {
  const { element } = await worker.brPop(queue, 10);
  return `celery-task-meta-${JSON.parse(element).headers.id}`;
}

/** Wait until so many connections wait for an answer: they have subscribed, and looked for it once. */
async function waiting(count) {
  for (;;) {
    const clients = await redis.sendCommand(["CLIENT", "LIST", "TYPE", "PUBSUB"]);
    if (String(clients.txt ?? clients).split("cmd=get").length > count) return;
  }
}

/** Keep and publish a result, as Celery does. */
async function answer(key, result, status = "SUCCESS", prefix = "") {
  const text = JSON.stringify({ status, result });
  await redis.multi().set(prefix + key, text).publish(prefix + key, text).exec();
}

async function using(options, work, url = URL_) {
  const postage = new PostageClient(url, options);
  try {
    return await work(postage);
  } finally {
    await postage.close();
  }
}

const emails = function* (count) {
  for (let number = 0; number < count; number++) yield ["email.send", { ...EMAIL, job_id: `job-${number}` }];
};

test("jobs are published in order, many at a time, under the prefix", async () => {
  const ids = await using({ keyPrefix: "shop-1:" }, (postage) => postage.sendMany(emails(1200)));
  assert.equal(new Set(ids).size, 1200);
  assert.deepEqual((await jobsOn("shop-1:email")).map((job) => job.job_id), Array.from(ids, (_, n) => `job-${n}`));
  assert.deepEqual(await redis.keys("*"), ["shop-1:email"]);
});

test("nothing of an array is published if one job is invalid; of a generator, nothing of its batch", async () => {
  await using({}, async (postage) => {
    const bad = ["email.send", { ...EMAIL, job_id: "x", secret: "s3cret" }];
    await assert.rejects(postage.sendMany([...emails(600), bad]), (error) => {
      assert.ok(error instanceof InvalidJobError);
      assert.match(error.message, /^jobs\[600\] \(email.send, x\) is not valid: `secret`: .* Nothing was published\.$/);
      return true;
    });
    assert.equal(await redis.dbSize(), 0);
    const jobs = async function* () {
      yield* emails(700);
      yield bad;
    };
    await assert.rejects(postage.sendMany(jobs()), { index: 700, published: 500 });
    assert.equal(await redis.lLen("email"), 500);
    for (const job of [null, "email.send", [5]]) await assert.rejects(postage.sendMany([job]), /a job is \[task, object\]/);
  });
});

test("a hundred answers are waited for at once, under the prefix", async () => {
  await using({ keyPrefix: "shop-1:" }, async (postage) => {
    const answers = Array.from({ length: 100 }, () => postage.ask("views.overview", VIEW));
    for (let count = 0; count < 100; count++) await answer(await taken("shop-1:views"), { count }, "SUCCESS", "shop-1:");
    assert.deepEqual((await Promise.all(answers)).map(({ count }) => count), Array.from(answers, (_, n) => n));
  });
});

test("an attempt that is made again is no answer, and a fault is not repeated", async () => {
  await using({}, async (postage) => {
    const asked = postage.ask("views.overview", VIEW);
    const key = await taken();
    await answer(key, { exc_type: "OperationalError" }, "RETRY");
    await redis.publish(key, "garbage");
    await answer(key, { status: "done" });
    assert.deepEqual(await asked, { status: "done" });
    const failed = assert.rejects(postage.ask("views.overview", VIEW), (error) => {
      assert.ok(error instanceof NoAnswerError);
      assert.match(error.message, /^A worker could not do views.overview \(KeyError\), and its log says why\. Ask again/);
      return !error.message.includes("s3cret");
    });
    await answer(await taken(), { exc_type: "KeyError", exc_message: ["s3cret"] }, "FAILURE");
    await failed;
  });
});

test("an answer that came while the connection was lost is found", async () => {
  await using({}, async (postage) => {
    const asked = postage.ask("views.overview", VIEW);
    const key = await taken();
    await waiting(1);
    const result = JSON.stringify({ status: "SUCCESS", result: { status: "done" } });
    await Promise.all([redis.sendCommand(["CLIENT", "KILL", "TYPE", "pubsub"]), redis.set(key, result)]);
    assert.deepEqual(await asked, { status: "done" });
    await postage.send("email.send", { ...EMAIL, job_id: "one" });
  });
});

test("no answer in time, and a client that was closed, are sentences", async () => {
  const postage = new PostageClient(URL_);
  await assert.rejects(postage.ask("views.overview", VIEW, { timeout: 50 }), /^NoAnswerError: There is no answer after 0.05 s: is a/);
  await assert.rejects(postage.ask("email.send", EMAIL), /email.send keeps no answer to wait for: send it, and ask views/);
  await assert.rejects(postage.ask("views.overview", VIEW, { timeout: "5" }), InvalidJobError);
  const asked = assert.rejects(postage.ask("views.overview", VIEW), /went away before the answer came: the client was closed/);
  await waiting(1);
  await postage.close();
  await asked;
  await assert.rejects(postage.send("email.send", { ...EMAIL, job_id: "one" }), /the client was closed\. Nothing was published/);
});

test("a broker that is full, or away, is named without what was sent to it", async () => {
  await redis.configSet("maxmemory", "1");
  try {
    const full = using({}, (postage) => postage.send("email.send", { ...EMAIL, job_id: "one" }));
    await assert.rejects(full, (error) => {
      assert.ok(error instanceof BrokerAwayError);
      assert.match(error.message, /used memory > 'maxmemory'\. Of the first 1 jobs some may have been published/);
      return error.uncertain === 1;
    });
  } finally {
    await redis.configSet("maxmemory", "0");
  }
  const away = using({}, (postage) => postage.ask("views.overview", VIEW), "redis://:s3cret@127.0.0.1:1/0");
  const awayToo = assert.rejects(away, (error) => {
    assert.match(error.message, /^The broker at 127.0.0.1:1\/0 cannot be used: connect ECONNREFUSED .* Nothing was published/);
    return !error.stack.includes("s3cret");
  });
  const sentinels = using({}, (postage) => postage.send("email.send", { ...EMAIL, job_id: "one" }), "sentinel://:s3cret@127.0.0.1:1;127.0.0.1:2");
  await awayToo;
  await assert.rejects(sentinels, /^BrokerAwayError: The broker mymaster of the Sentinels 127.0.0.1:1, 127.0.0.1:2 cannot be/);
});

test("a user without the right to do so is told", async () => {
  await redis.sendCommand(["ACL", "SETUSER", "shop", "reset", "on", ">pw", "~*", "+@all", "-subscribe"]);
  const { host } = new URL(URL_);
  const asked = using({}, (postage) => postage.ask("views.overview", VIEW), `redis://shop:pw@${host}/0`);
  await assert.rejects(asked, /BrokerAwayError: .*NOPERM .*subscribe.* Nothing was published/);
  const wrong = using({}, (postage) => postage.ask("views.overview", VIEW), `redis://shop:s3cret@${host}/0`);
  await assert.rejects(wrong, (error) => /WRONGPASS/.test(error.message) && !/s3cret/.test(error.stack));
});

test("a certificate is verified, by its name too", async () => {
  const read = (name) => readFileSync(`${process.env.CERTIFICATES}/${name}`);
  const broker = new URL(URL_);
  const server = createServer({ key: read("server.key"), cert: read("server.pem") }, (secure) => {
    const plain = connect(Number(broker.port), broker.hostname);
    secure.on("error", () => plain.destroy()).pipe(plain).pipe(secure);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const send = (host, ca) =>
    using({ ca }, (postage) => postage.send("email.send", { ...EMAIL, job_id: host }), `rediss://${host}:${server.address().port}/0`);
  try {
    await send("localhost", read("server.pem"));
    await send("127.0.0.1", read("server.pem").toString());
    assert.equal(await redis.lLen("email"), 2);
    process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"; // which some set for everything
    await Promise.all([
      assert.rejects(send("localhost"), /self-signed certificate.*Nothing was published/),
      assert.rejects(send("localhost.localdomain", read("server.pem")), /altnames|ENOTFOUND|EAI_AGAIN/),
    ]);
  } finally {
    delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    server.close();
  }
});

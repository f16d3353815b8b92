// Enqueue an email from Node, and read its outcome. It needs only `npm install`, which brings the Redis client.
//
//     node enqueue.mjs "$BROKER_URL" mary you@example.org
//
// It sends as the user `mary`, whose credits pay. A job is one JSON text on a Redis list: the message protocol of
// Celery, version 2 (https://docs.celeryq.dev/en/stable/internals/protocol.html), as kombu puts it into Redis.

import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "redis";

const FINAL = ["sent", "failed", "unknown", "refused"];

/** The envelope of one task: its name and id in the headers, its one argument in the body. */
export function envelope(task, queue, argument, id = randomUUID()) {
  return {
    headers: {
      lang: "js",
      task,
      id,
      root_id: id,
      parent_id: null,
      group: null,
      // What the header shows of the argument: no address and no text. Senders take turns on the queue by this.
      argsrepr: argument.sender ? `(sender=${argument.sender})` : "(…)",
      kwargsrepr: "{}",
      retries: 0,
      timelimit: [null, null],
      eta: null,
      expires: null,
      origin: `${process.pid}@${hostname()}`,
    },
    properties: {
      correlation_id: id,
      delivery_mode: 2,
      delivery_tag: randomUUID(),
      delivery_info: { exchange: "", routing_key: queue },
      priority: 0,
      body_encoding: "base64",
    },
    "content-type": "application/json",
    "content-encoding": "utf-8",
    // Positional arguments, keyword arguments, and what to call next.
    body: Buffer.from(
      JSON.stringify([[argument], {}, { callbacks: null, errbacks: null, chain: null, chord: null }]),
    ).toString("base64"),
  };
}

/** Put a task on its queue. Workers take from the other end of the list. */
export async function enqueue(redis, task, queue, argument) {
  const message = envelope(task, queue, argument);
  await redis.lPush(queue, JSON.stringify(message));
  return message.headers.id;
}

/** Put a task that answers on its queue, and wait for its answer, which the worker writes to a key of that task. */
export async function ask(redis, task, queue, argument, seconds = 30) {
  const id = await enqueue(redis, task, queue, argument);
  for (const until = Date.now() + seconds * 1000; Date.now() < until; await sleep(50)) {
    const kept = await redis.get(`celery-task-meta-${id}`);
    if (kept === null) continue;
    const { status, result } = JSON.parse(kept);
    if (status === "SUCCESS") return result;
    if (status === "FAILURE") throw new Error(`${task} failed: ${JSON.stringify(result)}`);
  }
  throw new Error(`${task} was not answered within ${seconds} s`);
}

async function main([url, sender, to]) {
  const redis = await createClient({ url })
    .on("error", (error) => console.error(String(error)))
    .connect();
  try {
    // Made before the job is sent, and kept with it: the same job sent again under the same id is neither charged nor
    // delivered a second time.
    const jobId = `example-${randomUUID()}`;
    const email = { job_id: jobId, sender, to, subject: "Hello", text: "Hello from Node, über Postage." };
    await enqueue(redis, "email.send", "email", email);
    console.log(`enqueued ${jobId}`);

    let answer;
    for (const until = Date.now() + 60_000; Date.now() < until; await sleep(500)) {
      answer = await ask(redis, "views.message", "views", { viewer: sender, job_id: jobId });
      // A job that no worker has taken up yet is not found.
      if (FINAL.includes(answer.status) && answer.reason !== "not_found") break;
    }
    for (const name of ["status", "reason", "detail", "credits", "paid_by"]) {
      console.log(name.padEnd(8), answer[name]);
    }
  } finally {
    redis.destroy();
  }
}

if (process.argv.length === 5) {
  await main(process.argv.slice(2));
} else {
  console.error("usage: node enqueue.mjs redis://host:6379/0 SENDER ADDRESS");
  process.exitCode = 2;
}

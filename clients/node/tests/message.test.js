import assert from "node:assert/strict";
import { test } from "node:test";
import { DisconnectsClientError } from "@redis/client";
import { words } from "../lib/errors.js";
import { makeMessage, redactedArgs } from "../lib/message.js";

const EMAIL = { job_id: "one", sender: "mary", to: "a@b.example", subject: "Hello", text: "Hello" };

test("the header shows job and sender, and nothing else of a message", () => {
  const { text } = makeMessage("email.send", { ...EMAIL, subject: "quokka", to: "quokka@b.example" });
  const { body, ...rest } = JSON.parse(text);
  assert.equal(rest.headers.argsrepr, "(job=one, sender=mary)");
  assert.doesNotMatch(JSON.stringify(rest), /quokka/);
  assert.match(Buffer.from(body, "base64").toString(), /quokka/);
  assert.equal(redactedArgs({ job_id: "an address@b.example", sender: 5 }), "(job=-, sender=-)");
});

test("priorities have the lists of kombu", () => {
  const lists = [0, 2, 3, 5, 6, 9].map((priority) => makeMessage("email.send", EMAIL, { priority }).list);
  assert.deepEqual(lists, ["email", "email", "email\x06\x163", "email\x06\x163", "email\x06\x166", "email\x06\x169"]);
});

test("a time has its zone", () => {
  const times = (options) => JSON.parse(makeMessage("email.send", EMAIL, options).text).headers;
  assert.equal(times({ eta: new Date(0) }).eta, "1970-01-01T00:00:00.000+00:00");
  assert.equal(times({ expires: "2026-12-01T10:00:00.000001+05:30" }).expires, "2026-12-01T10:00:00.000001+05:30");
  assert.equal(times({ eta: "2026-12-01T10:00Z", expires: null }).eta, "2026-12-01T10:00+00:00");
  for (const eta of ["2026-12-01T10:00:00", "2026-13-01T10:00:00Z", "tomorrow", 60, new Date(NaN)]) {
    assert.throws(() => makeMessage("email.send", EMAIL, { eta }), /`eta`: must be a Date, or ISO 8601 with a zone/);
  }
});

test("what is wrong with a job is said without repeating a value", () => {
  const self = {};
  self.headers = self;
  for (const [task, job, options, sentence] of [
    ["email.sned", EMAIL, {}, /^the tasks are email.send, /],
    ["toString", EMAIL, {}, /^the tasks are /],
    ["email.send", [EMAIL], {}, /^email.send takes one object\./],
    ["email.send", null, {}, /^email.send takes one object\./],
    ["email.send", { ...EMAIL, job_id: undefined }, {}, /^`job_id`: must be there, made before the first try/],
    ["email.send", { ...EMAIL, sender: null }, {}, /^`sender`: Field required\.$/],
    ["email.send", { ...EMAIL, "s\n": "s3cret" }, {}, /^`s\?`: email.send has no such field\.$/],
    ["email.send", EMAIL, { ignore: "s3cret" }, /^`ignore` is no option of a job; the options are eta, /],
    ["email.send", EMAIL, { priority: "5" }, /^`priority`: must be a whole number from 0/],
    ["email.send", { ...EMAIL, ...self }, {}, /^it cannot be written as JSON/],
    ["email.send", { ...EMAIL, text: 5n }, {}, /^it cannot be written as JSON/],
  ]) {
    assert.throws(
      () => makeMessage(task, job, options),
      (error) => sentence.test(error.message) && !/s3cret/.test(error.message),
      String(sentence),
    );
  }
});

test("words of the broker come without the command that it did not know", () => {
  const said = "ERR unknown command 'LPUSH', with args beginning with: 'email' '{\"body\": \"s3cret\n";
  assert.equal(words(new Error(said)), "ERR unknown command 'LPUSH'");
  assert.equal(words(new AggregateError([new Error("connect ECONNREFUSED ::1:6379.")])), "connect ECONNREFUSED ::1:6379");
  assert.equal(words(new DisconnectsClientError()), "the connection was given up before it answered");
  assert.equal(words(Object.assign(new Error(""), { code: "ETIMEDOUT" })), "ETIMEDOUT");
});

// Print what the official parser says of each AsyncAPI document of a list, which is JSON on the standard input:
// the operations in it, and the codes of what it finds wrong or worth saying.

import { json } from "node:stream/consumers";
import { Parser } from "@asyncapi/parser";

const parser = new Parser();
const said = [];
for (const given of await json(process.stdin)) {
  const { document, diagnostics } = await parser.parse(given);
  const operations = (document?.operations().all() ?? []).map((operation) => ({
    id: operation.id(),
    action: operation.action(),
    channels: operation.channels().all().map((channel) => channel.address()),
    messages: operation.messages().all().map((message) => message.name()),
    replies: (operation.reply()?.messages().all() ?? []).map((message) => message.name()),
  }));
  said.push({ operations, diagnostics: diagnostics.map(({ code, path }) => `${code}: ${path.join(".")}`) });
}
console.log(JSON.stringify(said));

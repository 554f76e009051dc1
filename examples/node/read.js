// Prints labels, failures and events as they come, one JSON document a line.
//
//   REDIS_URL=redis://localhost:6379 node read.js            from now on, without an end
//   REDIS_URL=redis://localhost:6379 node read.js 3          the next three labels
//
// Streams lose nothing while this program is away: keep the last id, and go on behind it. Channels are for those who
// want to hear of one source only, and may miss what comes while they are not connected.

import { createClient } from "redis";

const SOURCE = process.env.SOURCE ?? "node";
const COUNT = Number(process.argv[2] ?? Infinity);

const client = createClient({ url: process.env.REDIS_URL ?? "redis://localhost:6379" });
client.on("error", (error) => console.error(`redis: ${error.message}`));
await client.connect();

// What got no label, and why: by channel, since no stream holds all of it.
const listener = await client.duplicate().connect();
await listener.subscribe(`failures:${SOURCE}`, (text) => console.log(text));

async function newest(stream) {
  const [entry] = await client.xRevRange(stream, "+", "-", { COUNT: 1 });
  return entry?.id ?? "0-0";
}

const after = {
  labels: process.env.SINCE ?? (await newest("labels")),
  events: process.env.SINCE ?? (await newest("events")),
};
console.error("reading");
let seen = 0;
while (seen < COUNT) {
  const streams = Object.entries(after).map(([key, id]) => ({ key, id }));
  const reply = await client.xRead(streams, { BLOCK: 1000, COUNT: 100 });
  for (const { name, messages } of reply ?? []) {
    for (const { id, message } of messages) {
      if (name === "labels" && ++seen > COUNT) break; // more came at once than were wanted
      after[name] = id;
      console.log(message.json);
    }
  }
}
await listener.close();
await client.close();

// Puts pictures into the queue: each once, and no more than there is room for.
//
//   npm install
//   REDIS_URL=redis://localhost:6379 node produce.js photo.jpg ...
//
// A plain XADD does as well (`client.xAdd("frames", "*", { image, source: "door-1" })`), but knows no bound. The script
// admit.lua, which this reads from docs/, is what the Python producer uses: see docs/admission.md.

import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "redis";

const STREAM = process.env.STREAM ?? "frames";
const SOURCE = process.env.SOURCE ?? "node";
const MAX_ENTRIES = 10_000; // unfinished frames in the queue, as the setting queue.max_length
const MAX_BYTES = 1024 ** 3; // of their fields, as queue.max_total_bytes
const ADMITTED = "1", DUPLICATE = "2";

const script = await readFile(new URL("../../docs/admit.lua", import.meta.url), "utf8");
const client = createClient({ url: process.env.REDIS_URL ?? "redis://localhost:6379" });
client.on("error", (error) => console.error(`redis: ${error.message}`));
await client.connect();

// Rises with each frame of this source, over restarts too: a frame that is sent again is taken once.
let sequence = Date.now() * 1000;

async function put(fields) {
  const own = Object.entries(fields).flatMap(([name, value]) => [name, value]);
  const size = own.reduce((sum, part) => sum + Buffer.byteLength(part), 0);
  const options = {
    keys: [STREAM, `${STREAM}:books`, `${STREAM}:sources`, `${STREAM}:newcomer`, `${STREAM}:sequence:${fields.source}`],
    arguments: [
      ...[MAX_ENTRIES, MAX_BYTES, 0, 30_000], // 0: a refused frame is tried again, so it is not counted as lost
      ...[5, fields.source, ++sequence, 7 * 86_400_000, size, own.length], // 5: which key has the sequence
    ].map(String).concat(own),
  };
  for (let wait = 10; ; wait = Math.min(2 * wait, 1000)) {
    const [digits, entryId] = await client.eval(script, options);
    if (digits === ADMITTED) return entryId;
    if (digits === DUPLICATE) return null;
    await sleep(Math.random() * wait); // full: workers make room
  }
}

for (const path of process.argv.slice(2)) {
  const entryId = await put({ image: await readFile(path), source: SOURCE, frame_id: basename(path) });
  console.log(JSON.stringify({ frame_id: basename(path), entry_id: entryId }));
}
await client.close();

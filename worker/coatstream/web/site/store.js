// What the page knows, and the one stream from which it learns it. Views listen; they change nothing here.
//
// One stream a tab: browsers open six connections to a server over all tabs. A tab in the background has none.

const SILENT = 1800; // ms without a sign of life after which the worker counts as lost; signs come every 500 ms
const RETRY = [250, 500, 1000, 2000];
const SETTLE = 300; // ms that a new set of visible sources must last before the stream is opened anew

export const state = {
  cameras: new Map(),
  overview: null,
  known: false, // cameras have come at least once
  role: "look",
  trouble: "", // why the worker cannot read Redis
  lostSince: 0, // ms of performance.now(); 0: the stream is alive
};

const listeners = new Map();

export function on(topic, listener, signal) {
  const own = listeners.get(topic) ?? new Set();
  listeners.set(topic, own.add(listener));
  signal?.addEventListener("abort", () => own.delete(listener), { once: true });
}

// All is known once, and each event from here on comes by the stream.
export function everythingKnown(signal) {
  return state.known ? Promise.resolve() : new Promise((resolve) => on("cameras", resolve, signal));
}

function emit(topic, value) {
  for (const listener of [...(listeners.get(topic) ?? [])]) listener(value);
}

// ---- the server's clock: a wrong clock of this machine does no harm

let ahead = 0; // ms of the server's clock over performance.now()
export function now() {
  return (performance.now() + ahead) / 1000;
}

// ---- which previews are wanted, by whom

const wanted = new Map(); // view -> set of sources
let asked = "";
let settling = 0;

export function want(view, sources, signal) {
  wanted.set(view, sources);
  signal?.addEventListener("abort", () => { wanted.delete(view); settle(); }, { once: true });
  settle();
}

function sources() {
  return [...new Set([...wanted.values()].flatMap((set) => [...set]))].sort().slice(0, 40);
}

function settle() {
  clearTimeout(settling);
  settling = setTimeout(() => {
    if (sources().join("\n") !== asked) open();
  }, SETTLE);
}

// ---- the stream

let running = null; // AbortController
let failures = 0;
let heard = 0;
let retrying = 0;
let lastEvent = "";

export function start() {
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  setInterval(watch, 200);
  if (!document.hidden) open();
}

function close() {
  clearTimeout(retrying);
  running?.abort();
  running = null;
}

function open() {
  close();
  if (document.hidden) return;
  const controller = (running = new AbortController());
  const chosen = sources();
  asked = chosen.join("\n");
  heard = performance.now();
  read(controller, chosen).catch(() => {}).then(() => {
    if (running !== controller) return;
    lose();
    retrying = setTimeout(open, RETRY[Math.min(failures++, RETRY.length - 1)]);
  });
}

function lose() {
  if (!state.lostSince) {
    state.lostSince = performance.now();
    emit("link");
  }
}

function watch() {
  if (running && performance.now() - heard > SILENT) {
    lose();
    if (performance.now() - heard > 3 * SILENT) open();
  }
  if (state.lostSince) emit("link");
}

async function read(controller, chosen) {
  const asking = new URLSearchParams(chosen.map((source) => ["preview", source]));
  if (lastEvent) asking.set("after", lastEvent);
  const answer = await fetch(`/api/live?${asking}`, { signal: controller.signal, headers: { accept: "text/event-stream" } });
  if (answer.status === 401) return location.assign("/login");
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) receive(part);
  }
}

function receive(text) {
  let topic = "", data = "", id = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) topic = line.slice(7);
    else if (line.startsWith("data: ")) data = line.slice(6);
    else if (line.startsWith("id: ")) id = line.slice(4);
  }
  if (!data) return;
  heard = performance.now();
  if (id) lastEvent = id;
  take(topic, JSON.parse(data));
}

function take(topic, found) {
  if (topic === "time") {
    ahead = found.at * 1000 - performance.now();
    failures = 0;
    const changed = state.lostSince || state.trouble !== found.trouble;
    state.lostSince = 0;
    state.trouble = found.trouble;
    if (changed) emit("link");
  } else if (topic === "cameras") {
    if (found.whole) {
      const there = new Set(found.set.map((one) => one.name));
      found.gone = [...state.cameras.keys()].filter((name) => !there.has(name));
    }
    for (const name of found.gone) state.cameras.delete(name);
    for (const camera of found.set) state.cameras.set(camera.name, camera);
    state.known = true;
    emit("cameras", { changed: found.set, gone: found.gone });
  } else if (topic === "overview") {
    state.overview = found;
    emit("overview");
  } else {
    emit(topic, found);
  }
}

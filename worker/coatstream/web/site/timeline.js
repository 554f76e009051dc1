// The last day of one camera: which tag was present when, with a slider through it, and the same as a table.

import { api, clock, el, name, query, seconds, shown, stamp, write } from "./dom.js";
import { everythingKnown, now, on, state } from "./store.js";

const SPANS = [[3600, "last hour"], [6 * 3600, "last 6 hours"], [86400, "last day"]];
const DAY = 86400;
const ROWS = 8; // tags with a line of their own, those that were present the longest
const PAGES = 20; // of 500 events each
const STEPS = 1440; // of the slider: minutes
const TABLE = 200; // rows
const EVERY = 10000; // ms after which the day has moved on
const SETTLED = 10; // seconds in which a tag that has just begun may not be among the present ones yet

export async function showTimeline(main, signal, camera) {
  let end = now();
  const lines = el("div.lines");
  const slider = el("input", { type: "range", min: 0, max: STEPS, value: STEPS, "aria-label": "time within the last day" });
  const moment = el("output.moment", {}, "now");
  const width = el("select", { "aria-label": "how much time is shown" }, SPANS.map(([value, text]) => el("option", { value }, text)));
  width.value = DAY;
  let chosen = false;
  const picture = el("div.scrub");
  const table = el("tbody");
  const hint = el("p.hint", { role: "status" }, "Reading the last day…");
  main.append(el("section.timeline", { "aria-label": "The last day" },
    el("h2", {}, "The last day"), hint, lines, el("p.scrubber", {}, width, slider, moment), picture,
    el("details", {}, el("summary", {}, "The same as a table"),
      el("div.scroll", { tabindex: "0", role: "region", "aria-label": "events of the last day" }, el("table", {},
        el("thead", {}, el("tr", {}, ["Time", "What", "Tag", "Lasted", "Picture"].map((head) => el("th", { scope: "col" }, head)))), table)))));
  const events = [], early = [];
  let loaded = false;
  slider.addEventListener("input", () => scrub());
  width.addEventListener("change", () => { chosen = true; draw(); });

  function scrub() {
    const at = end - width.value + (width.value * slider.value) / STEPS;
    const spans = spansOf(events, state.cameras.get(camera)?.tags).filter((span) => span.from <= at && at <= span.to);
    write(moment, `${Number(slider.value) === STEPS ? "now" : clock(at)}: ${spans.map((span) => span.tag).join(", ") || "no tag"}`);
    slider.setAttribute("aria-valuetext", moment.textContent);
    const nearest = events.find((event) => event.picture && event.at <= at);
    if (picture.dataset.picture === (nearest?.picture ?? "")) return;
    picture.dataset.picture = nearest?.picture ?? "";
    picture.replaceChildren(...(nearest ? [eventPicture(nearest), el("p.hint", {}, `picture of ${clock(nearest.at)}`)] : []));
  }

  function draw() {
    const oldest = events.at(-1);
    if (!chosen && oldest) width.value = SPANS.find(([value]) => value >= end - oldest.at)?.[0] ?? DAY;
    drawLines(lines, spansOf(events, state.cameras.get(camera)?.tags), end, Number(width.value));
    write(hint, loaded && !lines.children.length && !events.length ? "Nothing happened in the last day." : loaded ? "" : `${events.length} events so far…`);
    scrub();
  }

  // Where the slider stands at its end, the end goes with the time.
  function move() {
    if (Number(slider.value) === STEPS) end = now();
    if (!document.hidden) draw();
  }

  // Newer than all that are there.
  function add(event) {
    events.unshift(event);
    events.length = Math.min(events.length, PAGES * 500);
    table.prepend(rowOf(event));
    while (table.children.length > TABLE) table.lastElementChild.remove();
  }

  on("event", (event) => {
    if (event.camera !== camera) return;
    if (!loaded) return early.push(event);
    add(event);
    move();
  }, signal);
  try {
    await everythingKnown(signal); // or an event between the reading and the stream's beginning would be in neither
    await readDay(events, camera, signal, draw);
  } catch (failure) {
    if (failure.name !== "AbortError") write(hint, failure.message);
    return;
  }
  table.append(...events.slice(0, TABLE).map(rowOf));
  const known = new Set(events.map((event) => event.id));
  for (const event of early) if (!known.has(event.id)) add(event);
  loaded = true;
  move();
  let present = tagsOf(camera);
  on("cameras", () => {
    if (present === tagsOf(camera)) return;
    present = tagsOf(camera);
    move();
  }, signal);
  const timer = setInterval(move, EVERY);
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });
}

function tagsOf(camera) {
  return (state.cameras.get(camera)?.tags ?? []).map((one) => one.tag).join("\n");
}

function rowOf(event) {
  return el("tr", {},
    el("td", {}, stamp(event.at)), el("td", {}, shown(event.kind)), el("td", {}, name(event.tag ?? event.detail.state ?? event.detail.fault ?? "")),
    el("td", {}, seconds(event.detail.duration)), el("td", {}, event.picture ? el("a", { href: pictureOf(event), target: "_blank" }, `picture of ${clock(event.at)}`) : ""));
}

async function readDay(events, camera, signal, then) {
  let before = null;
  for (let page = 0; page < PAGES; page++) {
    const found = await api(`/events${query({ camera, since: "1d", limit: 500, before })}`, { signal });
    events.push(...found.items);
    then();
    before = found.next;
    if (!before) return;
  }
}

// From events, newest first, to spans of tags. A start without an end lasts until now if the tag is present; if it is not,
// its worker was killed, and it lasts until the camera was opened again. A present tag may have begun before the last day.
function spansOf(events, present) {
  const open = new Map(), ended = new Map();
  const spans = [];
  for (const event of [...events].reverse()) {
    if (event.kind === "tag.started") open.set(event.tag, event.detail.started_at ?? event.at);
    if (event.kind === "tag.ended") {
      spans.push({ tag: event.tag, from: event.detail.started_at ?? open.get(event.tag) ?? event.at - DAY, to: event.detail.ended_at ?? event.at });
      open.delete(event.tag);
      ended.set(event.tag, event.at);
    }
  }
  const there = new Map((present ?? []).map((one) => [one.tag, one.since]));
  for (const [tag, from] of open) {
    const lasts = !present || there.has(tag) || now() - from < SETTLED;
    const cut = lasts ? null : events.findLast((event) => event.kind === "camera.state" && event.at > from);
    spans.push({ tag, from, to: lasts ? now() : cut?.at ?? from });
  }
  for (const [tag, since] of there) if (!open.has(tag) && !(ended.get(tag) >= since)) spans.push({ tag, from: since, to: now() });
  return spans;
}

function drawLines(place, all, end, width) {
  const spans = all.filter((span) => span.to >= end - width);
  const longest = new Map();
  for (const span of spans) longest.set(span.tag, (longest.get(span.tag) ?? 0) + span.to - span.from);
  const tags = [...longest].sort((one, other) => other[1] - one[1]).slice(0, ROWS).map(([tag]) => tag);
  place.replaceChildren(...tags.map((tag) => el("div.line", {}, el("span.what", {}, name(tag)), lineOf(spans.filter((span) => span.tag === tag), end, width))));
}

// One canvas a tag: a day may have thousands of spans.
function lineOf(spans, end, width) {
  const canvas = el("canvas", { width: 960, height: 16, role: "img", "aria-label": `${spans.length} times, ${seconds(spans.reduce((sum, span) => sum + span.to - span.from, 0))} in all` });
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  for (const span of spans) {
    const from = Math.max(0, (960 * (span.from - end + width)) / width);
    pen.fillRect(from, 2, Math.max(2, (960 * (span.to - end + width)) / width - from), 12);
  }
  return canvas;
}

export function pictureOf(event) {
  return `/api/pictures/${encodeURIComponent(event.picture)}`;
}

export function eventPicture(event) {
  const what = event.tag ?? event.detail.state ?? event.kind;
  const picture = el("img", { src: pictureOf(event), alt: shown(`${event.camera}: ${what}, ${clock(event.at)}`), loading: "lazy", decoding: "async", width: 320, height: 180 });
  picture.addEventListener("error", () => picture.replaceWith(el("p.nopicture", {}, "the picture is gone")), { once: true });
  return picture;
}

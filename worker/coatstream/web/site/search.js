// Search over events: "dog, last hour", "person, door-1, last 2 days".

import { api, el, name, percent, query, seconds, shown, stamp, write } from "./dom.js";
import { on, state } from "./store.js";
import { eventPicture } from "./timeline.js";

const UNITS = { second: "s", minute: "m", min: "m", hour: "h", day: "d", week: "w" };
const KINDS = {
  "tag.started": "began", "tag.ended": "ended", "camera.state": "is now", "picture.sick": "picture is sick", "picture.well": "picture is well again",
};

// Words between commas: a time ("last hour", "today", "10m"), a camera's name, or else part of a label.
export function understood(text, cameras) {
  const found = {};
  for (const word of text.split(",").map((part) => part.trim()).filter(Boolean)) {
    const plain = word.toLowerCase();
    const ago = /^(?:last|past|the last)?\s*(\d+(?:\.\d+)?)?\s*(second|minute|min|hour|day|week)s?$/.exec(plain);
    const short = /^(?:last\s+)?(\d+(?:\.\d+)?)\s*([smhd])$/.exec(plain);
    if (short) found.since = short[1] + short[2];
    else if (ago && (ago[1] || plain.startsWith("last") || plain.startsWith("past"))) {
      const unit = UNITS[ago[2]];
      found.since = unit === "w" ? `${7 * (ago[1] ?? 1)}d` : `${ago[1] ?? 1}${unit}`;
    } else if (plain === "today") found.since = String(Math.floor(new Date().setHours(0, 0, 0, 0) / 1000));
    else if (cameras.includes(word)) found.camera = word;
    else found.label = word;
  }
  return found;
}

export function searchView(main, signal, asked) {
  const input = el("input", { id: "words", type: "search", placeholder: "dog, last hour", value: asked || "last hour", autocomplete: "off", spellcheck: "false" });
  const camera = el("select", { id: "camera" });
  const hint = el("p.hint", { role: "status" });
  const list = el("ol.cards");
  const more = el("button", { type: "button", hidden: true, onclick: () => load() }, "Older ones");
  const form = el("form.bar-form", { role: "search" },
    el("p.field", {}, el("label", { for: "words" }, "What, and when"), input),
    el("p.field", {}, el("label", { for: "camera" }, "Camera"), camera),
    el("button", {}, "Search"));
  main.append(el("div.heading", {}, el("h1", {}, "Search events")), form, hint, list, more);
  let next = null, asking = {}, turn = 0;

  function fillCameras() {
    const names = [...state.cameras.keys()].sort();
    if (camera.dataset.names === names.join("\n")) return;
    camera.dataset.names = names.join("\n");
    const chosen = camera.value;
    camera.replaceChildren(el("option", { value: "" }, "all"), ...names.map((one) => el("option", { value: one }, shown(one))));
    camera.value = chosen;
  }

  async function load() {
    const mine = turn;
    more.hidden = true;
    try {
      let found = { items: [], next };
      // A page may be empty and yet have a next: the server reads a bounded number of events for each.
      for (let tries = 0; tries < 20 && !found.items.length && (tries === 0 || found.next); tries++) {
        found = await api(`/events${query({ ...asking, limit: 24, before: found.next })}`, { signal });
        if (mine !== turn) return;
      }
      list.append(...found.items.map(card));
      next = found.next;
      more.hidden = !next;
      write(hint, list.children.length ? `${list.children.length} events, newest first` : "Nothing like that happened.");
    } catch (failure) {
      if (failure.name !== "AbortError") write(hint, failure.message);
    }
  }

  function search() {
    turn++;
    next = null;
    asking = understood(input.value, [...state.cameras.keys()]);
    if (camera.value) asking.camera = camera.value;
    list.replaceChildren();
    load();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    history.replaceState(null, "", `#/search/${encodeURIComponent(input.value)}`);
    search();
  });
  camera.addEventListener("change", search);
  fillCameras();
  on("cameras", fillCameras, signal);
  search();
}

function card(event) {
  const detail = event.detail;
  const what = event.tag ?? detail.state ?? detail.fault ?? "";
  const words = [KINDS[event.kind] ?? event.kind];
  if (detail.duration != null) words.push(`after ${seconds(detail.duration)}`);
  const score = event.score ?? detail.peak;
  if (score != null) words.push(percent(score));
  return el("li.card", {},
    event.picture ? eventPicture(event) : el("p.nopicture", {}, "no picture"),
    el("h2", {}, name(what)),
    el("p", {}, el("a", { href: `#/camera/${encodeURIComponent(event.camera)}` }, name(event.camera)), " · ", words.join(", "), " · ", stamp(event.at)),
    detail.message ? el("p.why", {}, shown(detail.message)) : null);
}

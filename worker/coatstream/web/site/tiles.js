// A tile a camera. Those that are out of sight get no previews and no changes until they are seen again.

import { bar, el, name, percent, rate, seconds, shown, write } from "./dom.js";
import { Preview } from "./picture.js";
import { now, on, state, want } from "./store.js";

export const STATES = {
  live: ["●", "live"], connecting: ["◌", "connecting"], stalled: ["◐", "stalled"], down: ["✕", "down"],
  paused: ["‖", "paused"], ended: ["■", "ended"], unread: ["○", "unread"], unknown: ["?", "unknown"],
};
const SLICE = 8; // ms
const MOST_TAGS = 6; // of a tile
const WHY = {
  unreachable: "cannot be reached", refused: "refuses the connection", auth: "user or password are wrong", timeout: "is silent",
  no_video: "sends no video", codec: "sends pictures that cannot be decoded here", ended: "has closed the connection",
  crashed: "made the process that reads it crash",
};

export function whyOf(camera) {
  const parts = [];
  if (camera.state !== "live" && (camera.reason || camera.message)) parts.push(camera.message || WHY[camera.reason] || camera.reason);
  if (camera.sick.length) parts.push(`the picture is ${camera.sick.join(" and ")}`);
  return parts.join("; ");
}

export function badge() {
  const mark = el("span", { "aria-hidden": "true" });
  const word = el("span");
  const node = el("span.state", {}, mark, word);
  return {
    node,
    show(camera) {
      const [shape, text] = STATES[camera.state] ?? STATES.unknown;
      node.dataset.state = camera.state;
      write(mark, shape);
      const age = camera.since ? now() - camera.since : 0;
      write(word, camera.state !== "live" && age > 1 ? `${text} for ${seconds(age)}` : text);
    },
  };
}

// The list of present tags with bars; without any, what the newest frame shows. `most`: a row more says how many there are.
export function tagList(most = Infinity) {
  const node = el("ul.tags", { "aria-label": "tags" });
  let rows = new Map();
  return {
    node,
    show(camera) {
      const tags = [...camera.tags].sort((one, other) => other.score - one.score).slice(0, most)
        .map((tag) => ({ key: `t${tag.tag}`, text: tag.tag, score: tag.score, note: `for ${seconds(Math.max(0, now() - tag.since))}` }));
      if (camera.tags.length > most) tags.push({ key: "more", text: `and ${camera.tags.length - most} more`, score: null, note: "", faint: true });
      const guess = camera.latest?.labels[0];
      const items = tags.length || !guess || camera.state !== "live" ? tags
        : [{ key: "guess", text: guess.label, score: guess.score, note: "no tag yet", faint: true }];
      const next = new Map();
      for (const item of items) {
        const row = rows.get(item.key) ?? newRow();
        next.set(item.key, row);
        row.node.classList.toggle("faint", Boolean(item.faint));
        write(row.text, item.text);
        write(row.score, percent(item.score));
        write(row.note, item.note);
        row.line.hidden = item.score == null;
        row.fill.style.inlineSize = `${Math.round(item.score * 100)}%`;
      }
      if ([...next.keys()].join() !== [...rows.keys()].join()) node.replaceChildren(...[...next.values()].map((row) => row.node));
      rows = next;
    },
  };
}

function newRow() {
  const text = el("bdi.tag");
  const score = el("span.score");
  const note = el("span.note");
  const line = bar(0);
  return { node: el("li", {}, text, score, line, note), text, score, note, line, fill: line.firstChild };
}

class Tile {
  constructor(camera, signal) {
    this.camera = camera;
    this.seen = false;
    this.dirty = true;
    this.preview = new Preview(camera.name, signal);
    this.badge = badge();
    this.why = el("p.why");
    this.tags = tagList(MOST_TAGS);
    this.facts = el("p.facts");
    const href = `#/camera/${encodeURIComponent(camera.name)}`;
    this.node = el("article.tile", { "data-camera": camera.name },
      el("a.shot", { href, tabindex: "-1", "aria-hidden": "true" }, this.preview.node),
      el("header", {}, el("h2", {}, el("a", { href }, name(camera.name))), this.badge.node),
      this.why, this.tags.node, this.facts);
  }

  update() {
    if (!this.seen) {
      this.dirty = true;
      return;
    }
    this.dirty = false;
    const camera = this.camera;
    this.node.dataset.state = camera.state;
    this.node.classList.toggle("sick", camera.sick.length > 0);
    this.badge.show(camera);
    const why = whyOf(camera);
    write(this.why, why);
    this.why.hidden = !why;
    this.tags.show(camera);
    const facts = [];
    if (camera.fps != null) facts.push(`${rate(camera.fps)} of ${rate(camera.wanted_fps) || "all"} labels/s`);
    if (camera.latest) facts.push(`${seconds(Math.max(0, now() - camera.latest.at))} ago`);
    if (camera.worker) facts.push(camera.worker);
    write(this.facts, facts.join(" · "));
    this.facts.title = shown(camera.url);
    this.preview.tick();
  }
}

export function showTiles(place, signal) {
  const grid = el("div.grid");
  const tiles = new Map();
  place.append(grid);
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const tile = tiles.get(entry.target.dataset.camera);
      if (!tile) continue;
      tile.seen = entry.isIntersecting;
      if (tile.seen && tile.dirty) later(tile);
    }
    want("tiles", new Set([...tiles.values()].filter((tile) => tile.seen).map((tile) => tile.camera.name)), signal);
  }, { rootMargin: "100px" });
  signal.addEventListener("abort", () => watcher.disconnect(), { once: true });

  // Changed tiles are drawn a few at a time, so that no task holds up the page for long.
  const due = new Set();
  let drawing = 0;
  function later(tile) {
    due.add(tile);
    drawing ||= requestAnimationFrame(draw);
  }
  function draw() {
    const began = performance.now();
    for (const tile of due) {
      due.delete(tile);
      tile.update();
      if (performance.now() - began > SLICE) break;
    }
    drawing = due.size ? requestAnimationFrame(draw) : 0;
  }
  signal.addEventListener("abort", () => cancelAnimationFrame(drawing), { once: true });

  function take({ changed, gone }) {
    for (const camera of gone) drop(camera);
    let more = false;
    for (const camera of changed) {
      const tile = tiles.get(camera.name);
      if (tile) {
        const urgent = tile.camera.state !== camera.state || tile.camera.tags.length !== camera.tags.length;
        tile.camera = camera;
        tile.dirty = true;
        if (tile.seen && urgent) later(tile); // all else waits for the next second
      } else {
        const made = { tile: null, end: new AbortController() };
        signal.addEventListener("abort", () => made.end.abort(), { once: true, signal: made.end.signal });
        const own = new Tile(camera, made.end.signal);
        own.end = made.end;
        tiles.set(camera.name, own);
        more = true;
      }
    }
    if (more) arrange();
    grid.classList.toggle("few", tiles.size < 5);
  }

  function drop(camera) {
    const tile = tiles.get(camera);
    if (!tile) return;
    watcher.unobserve(tile.node);
    tile.node.remove();
    tile.end.abort();
    tiles.delete(camera);
  }

  // A node that is moved loses the keyboard's focus, so those that are in their place stay.
  function arrange() {
    let place = grid.firstElementChild;
    for (const key of [...tiles.keys()].sort((one, other) => one.localeCompare(other, undefined, { numeric: true }))) {
      const tile = tiles.get(key);
      if (tile.node === place) place = place.nextElementSibling;
      else grid.insertBefore(tile.node, place);
      watcher.observe(tile.node);
    }
  }

  take({ changed: [...state.cameras.values()], gone: [] });
  on("cameras", take, signal);
  const timer = setInterval(() => {
    for (const tile of tiles.values()) if (tile.seen) later(tile);
  }, 1000);
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });
}


// The queue: how far behind it is, whether its books balance, and the newest label of each source.

import { api, bar, el, name, percent, query, seconds, shown, stamp, write } from "./dom.js";
import { Preview } from "./picture.js";
import { now, on, state, want } from "./store.js";

const EVERY = 2000; // ms
const SOON = 200; // ms, until cameras are known
const MOST = 60; // sources shown at once
const PAGES = 10; // looked through for them: cameras have newest labels too

export function queueView(main, signal) {
  const tables = el("div");
  const filter = el("input", { id: "source", type: "search", autocomplete: "off" });
  const hint = el("p.hint", { role: "status" });
  const grid = el("div.grid");
  main.append(el("div.heading", {}, el("h1", {}, "Queue")), tables, el("h2", {}, "Sources"),
    el("p.field", {}, el("label", { for: "source" }, "Only sources whose name contains"), filter), hint, grid);
  const tiles = new Map();
  let waiting = 0, turn = 0;

  function update() {
    if (state.overview) tables.replaceChildren(queueTable(state.overview.queues));
  }

  async function read() {
    clearTimeout(waiting);
    const mine = ++turn;
    if (!document.hidden && state.known) {
      try {
        const found = await readSources(filter.value, signal);
        if (mine !== turn) return; // another question has been asked meanwhile
        show(found);
      } catch (failure) {
        if (failure.name === "AbortError" || mine !== turn) return;
        write(hint, failure.message);
      }
    }
    if (!signal.aborted) waiting = setTimeout(read, state.known ? EVERY : SOON);
  }

  function show({ items, more }) {
    const names = new Set(items.map((item) => item.source));
    for (const [source, tile] of tiles) {
      if (names.has(source)) continue;
      tile.end.abort();
      tile.node.remove();
      tiles.delete(source);
    }
    for (const item of items) {
      if (!tiles.has(item.source)) {
        const tile = newTile(item.source, signal);
        tiles.set(item.source, tile);
        grid.append(tile.node);
      }
      tiles.get(item.source).show(item);
    }
    const none = filter.value ? "No source has this in its name." : "No picture has come through the queue yet: coatstream enqueue photos/ --source door-1";
    write(hint, items.length ? `${items.length} sources${more ? ", and more: narrow the name" : ""}` : none);
    want("queue", new Set([...names].slice(0, 20)), signal);
  }

  filter.addEventListener("input", read);
  on("overview", update, signal);
  signal.addEventListener("abort", () => clearTimeout(waiting), { once: true });
  update();
  read();
}

// Sources that are no cameras, by name.
async function readSources(contains, signal) {
  const items = [];
  let after = null;
  for (let page = 0; page < PAGES && items.length < MOST; page++) {
    const found = await api(`/labels${query({ limit: MOST, contains, after })}`, { signal });
    items.push(...found.items.filter((item) => !state.cameras.has(item.source)));
    after = found.next;
    if (!after) break;
  }
  return { items: items.slice(0, MOST), more: Boolean(after) || items.length > MOST };
}

function queueTable(queues) {
  if (!queues.length) return el("p.hint", {}, "No queue is read here: queue.enabled is false.");
  const heads = ["Stream", "Waiting", "In work", "Oldest", "Labelled", "Dropped", "Dead", "Stranded", "Books"];
  const rows = queues.map((queue) => el("tr", {}, el("th", { scope: "row" }, name(queue.stream)),
    [queue.entries - queue.in_work, queue.in_work, queue.entries ? seconds(queue.oldest_age) : "", queue.published, queue.dropped, queue.dead, queue.stranded].map((cell) => el("td", {}, String(cell))),
    el("td", {}, queue.balanced ? "balance" : `${queue.gone} vanished`)));
  return el("div.scroll", { tabindex: "0", role: "region", "aria-label": "queues" }, el("table", {},
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, rows)));
}

function newTile(source, parent) {
  const end = new AbortController();
  parent.addEventListener("abort", () => end.abort(), { once: true, signal: end.signal });
  const preview = new Preview(source, end.signal);
  const labels = el("ol.labels");
  const facts = el("p.facts");
  const node = el("article.tile", {}, el("span.shot", {}, preview.node), el("header", {}, el("h2", {}, name(source))), labels, facts);
  return {
    node, end,
    show(item) {
      labels.replaceChildren(...item.labels.slice(0, 3).map((one) =>
        el("li", {}, el("bdi.tag", {}, shown(one.label)), el("span.score", {}, percent(one.score)), bar(one.score))));
      write(facts, `${seconds(Math.max(0, now() - item.at))} ago`);
      preview.tick();
    },
  };
}

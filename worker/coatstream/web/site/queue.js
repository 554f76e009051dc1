// The queue: how far behind it is, whether its books balance, and the newest label of each source.

import { api, bar, el, name, percent, query, seconds, shown, stamp, write } from "./dom.js";
import { Preview } from "./picture.js";
import { now, on, state, want } from "./store.js";

const EVERY = 2000; // ms
const MOST = 60; // sources shown at once

export function queueView(main, signal) {
  const tables = el("div");
  const filter = el("input", { id: "source", type: "search", autocomplete: "off" });
  const hint = el("p.hint", { role: "status" });
  const grid = el("div.grid");
  main.append(el("div.heading", {}, el("h1", {}, "Queue")), tables, el("h2", {}, "Sources"),
    el("p.field", {}, el("label", { for: "source" }, "Only sources whose name contains"), filter), hint, grid);
  const tiles = new Map();
  let waiting = 0;

  function update() {
    if (state.overview) tables.replaceChildren(queueTable(state.overview.queues));
  }

  async function read() {
    clearTimeout(waiting);
    if (!document.hidden) {
      try {
        const found = await api(`/labels${query({ limit: MOST, contains: filter.value })}`, { signal });
        show(found);
      } catch (failure) {
        if (failure.name === "AbortError") return;
        write(hint, failure.message);
      }
    }
    if (!signal.aborted) waiting = setTimeout(read, EVERY);
  }

  function show(found) {
    const items = found.items.filter((item) => !state.cameras.has(item.source));
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
    write(hint, items.length ? `${items.length} sources${found.next ? ", and more: narrow the name" : ""}` : "No picture has come through the queue yet: coatstream enqueue photos/ --source door-1");
    want("queue", new Set([...names].slice(0, 20)), signal);
  }

  filter.addEventListener("input", read);
  on("overview", update, signal);
  signal.addEventListener("abort", () => clearTimeout(waiting), { once: true });
  update();
  read();
}

function queueTable(queues) {
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

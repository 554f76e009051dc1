// One camera: its picture, its tags, what can be done with it, and its last day.

import { confirmed } from "./cameras.js";
import { api, bar, el, name, percent, rate, seconds, shown, stamp, write } from "./dom.js";
import { Preview } from "./picture.js";
import { now, on, state, want } from "./store.js";
import { badge, tagList, whyOf } from "./tiles.js";
import { showTimeline } from "./timeline.js";

export function cameraView(main, signal, camera) {
  const preview = new Preview(camera, signal);
  const status = badge();
  const why = el("p.why");
  const tags = tagList();
  const labels = el("ol.labels");
  const facts = el("dl.facts");
  const actions = el("p.buttons");
  const told = el("p.told", { role: "status" });
  const present = el("div", {}, el("h2", {}, "Tags now"), tags.node, el("h2", {}, "Newest labels"), labels, facts, actions);
  main.append(
    el("p", {}, el("a", { href: "#/" }, "All cameras")),
    el("div.heading", {}, el("h1", {}, name(camera)), status.node),
    el("div.detail", {}, preview.node, el("div", {}, why, present, told)));
  showTimeline(main, signal, camera);
  want("camera", new Set([camera]), signal);

  function update() {
    const found = state.cameras.get(camera);
    // Of a camera that is gone nothing stays as if it were there: only its last day.
    const gone = !found && state.known;
    for (const part of [present, status.node, preview.node]) part.hidden = gone;
    if (!found) {
      write(why, gone ? "There is no camera of this name any more." : "");
      why.hidden = !gone;
      return;
    }
    status.show(found);
    write(why, whyOf(found));
    why.hidden = !whyOf(found);
    tags.show(found);
    labels.replaceChildren(...labelRows(found.latest));
    showFacts(facts, found);
    offer(actions, told, found);
    preview.tick();
  }
  update();
  on("cameras", update, signal);
  const timer = setInterval(update, 1000);
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });
}

// Those of the whole picture, or of each region that has a name.
function labelRows(latest) {
  const row = (one) => el("li", {}, el("bdi.tag", {}, shown(one.label)), el("span.score", {}, percent(one.score)), bar(one.score));
  const regions = Object.entries(latest?.regions ?? {});
  if (!regions.length) return (latest?.labels ?? []).map(row);
  return regions.flatMap(([region, own]) => [el("li.region", {}, name(region)), ...own.slice(0, 3).map(row)]);
}

function showFacts(list, found) {
  const rows = [
    ["Address", found.url], ["Read by", found.worker || "no worker"],
    ["Labels", found.fps == null ? "" : `${rate(found.fps)} a second, ${rate(found.wanted_fps) || "all"} wanted`],
    ["Pictures read", found.read_fps == null ? "" : `${rate(found.read_fps)} a second`],
    ["Reused labels", found.gate ? `saves nothing: ${found.gate}` : ""],
    ["Newest label", found.latest ? `${seconds(Math.max(0, now() - found.latest.at))} ago` : "none"],
    ["From", found.origin === "redis" ? "Redis (added at run time)" : "the settings file"],
  ].filter(([, text]) => text);
  const text = JSON.stringify(rows);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...rows.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, shown(value)))));
}

function offer(place, told, found) {
  const shape = `${found.state === "paused"} ${found.origin} ${state.role}`;
  if (place.dataset.shape === shape || state.role !== "change") return;
  place.dataset.shape = shape;
  const act = (method, path, body) => async () => {
    try {
      write(told, (await api(path, { method, body })).done);
    } catch (failure) {
      write(told, failure.message);
    }
  };
  const paused = found.state === "paused";
  const pause = el("button", { type: "button", onclick: act("POST", `/cameras/${paused ? "resume" : "pause"}`, { name: found.name }) }, paused ? "Resume" : "Pause");
  const remove = el("button.danger", {
    type: "button",
    onclick: async () => {
      if (!(await confirmed(`Remove ${shown(found.name)}? Its address and password are deleted from Redis.`, "Remove"))) return;
      await act("DELETE", `/cameras?${new URLSearchParams({ name: found.name })}`)();
    },
  }, "Remove");
  place.replaceChildren(pause, ...(found.origin === "redis" ? [remove] : []));
}

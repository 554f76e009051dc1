// The strip: the whole fleet in a dozen numbers, and what is wrong with it in words.

import { el, rate, seconds, shown, write } from "./dom.js";
import { now, on, state } from "./store.js";

const LEFT = {
  full: "full", deadline: "max_wait was over", target: "latency target", pays_no_more: "waiting pays no more", drain: "drain",
};
const LONG = /^(Stages|Model)/;
const cells = new Map();

export function showStrip(place) {
  const list = el("dl.figures");
  const notes = el("ul.notes");
  place.append(list, notes);
  update(list, notes);
  on("overview", () => update(list, notes));
  on("cameras", () => update(list, notes));
}

function update(list, notes) {
  if (!state.overview) return;
  const figures = figuresOf(state.overview);
  for (const [label, text, title] of figures) put(list, label, text, title);
  for (const label of [...cells.keys()]) {
    if (!figures.some(([known]) => known === label)) {
      cells.get(label).parentNode.remove();
      cells.delete(label);
    }
  }
  const order = figures.map(([label]) => cells.get(label).parentNode);
  if (order.some((cell, place) => list.children[place] !== cell)) list.append(...order);
  const words = notesOf(state.overview);
  if (notes.dataset.words !== words.join("\n")) {
    notes.dataset.words = words.join("\n");
    notes.replaceChildren(...words.map((word) => el("li", {}, shown(word))));
  }
}

function put(list, label, text, title) {
  let cell = cells.get(label);
  if (!cell) {
    cell = el("dd");
    cells.set(label, cell);
    list.append(el(LONG.test(label) ? "div.long" : "div", {}, el("dt", {}, label), cell));
  }
  write(cell, text);
  if (title) cell.parentNode.title = shown(title);
}

function figuresOf({ workers, queues }) {
  const sum = (pick, of = workers) => of.reduce((total, one) => total + pick(one), 0);
  const busy = workers.filter((worker) => worker.batches.size);
  const states = [...state.cameras.values()].map((camera) => camera.state);
  const live = states.filter((one) => one === "live").length;
  const figures = [["Replicas", String(workers.length), workers.map((worker) => worker.worker).join(", ")]];
  if (states.length) figures.push(["Cameras", `${live} of ${states.length} live`]);
  figures.push(["Labels", `${rate(sum((worker) => worker.frames_per_second))} / s`]);
  if (busy.length) {
    const batches = sum((worker) => worker.batches.per_second, busy) || 1;
    const weigh = (pick) => sum((worker) => pick(worker) * worker.batches.per_second, busy) / batches;
    figures.push(["Batch", `${rate(weigh((worker) => worker.batches.size))} inputs, ${Math.round(weigh((worker) => worker.batches.fill) * 100)} % filled`, reasons(busy)]);
    figures.push(["Age", seconds(Math.max(...busy.map((worker) => worker.age ?? 0))), "from capture to label, mean of the slowest replica"]);
    figures.push(["Stages", ["decode", "wait", "infer", "publish"].map((stage) => stageOf(busy, stage)).filter(Boolean).join(" · ")]);
  }
  for (const queue of queues) {
    const which = queues.length > 1 ? ` ${queue.stream}` : "";
    figures.push([`Queue${which}`, queue.entries ? `${queue.entries}, oldest ${seconds(queue.oldest_age)}` : "empty", `${queue.in_work} in work, ${queue.published} published so far`]);
    if (queue.dead) figures.push([`Dead${which}`, String(queue.dead)]);
    if (queue.stranded) figures.push([`Stranded${which}`, String(queue.stranded)]);
  }
  const models = [...new Set(workers.filter((worker) => worker.model).map(({ model }) => `${model.name} · ${model.engine} ${model.precision} on ${model.device} · weights ${model.weights}`))];
  for (const [number, model] of models.entries()) figures.push([models.length > 1 ? `Model ${number + 1}` : "Model", model]);
  return figures;
}

function stageOf(workers, stage) {
  const times = workers.map((worker) => worker.stages[stage]).filter((time) => time != null);
  return times.length ? `${stage} ${seconds(Math.max(...times))}` : "";
}

function reasons(workers) {
  const left = {};
  for (const worker of workers) for (const [why, count] of Object.entries(worker.batches.left)) left[why] = (left[why] ?? 0) + count;
  const full = Math.max(...workers.map((worker) => worker.batches.full));
  return `a full batch has ${full}; those of the last 10 s left because: ` + Object.entries(left).map(([why, count]) => `${LEFT[why] ?? why} ${count}`).join(", ");
}

function notesOf({ workers, queues, faults }) {
  const notes = [];
  if (!workers.length) notes.push("No worker reports: start one with coatstream run.");
  for (const worker of workers) {
    if (worker.model?.weights === "random") notes.push(`${worker.worker} runs with random weights: its labels mean nothing.`);
    if (worker.because.length) notes.push(`${worker.worker} is not ready: ${worker.because.join("; ")}.`);
    if (now() - worker.started_at < 60 && worker.restarts) notes.push(`${worker.worker} was started again after a crash.`);
  }
  for (const queue of queues) if (queue.gone > 0) notes.push(`${queue.gone} entries vanished from ${queue.stream} without an outcome.`);
  for (const [camera, why] of Object.entries(faults)) notes.push(`Camera ${camera} in Redis is left out: ${why}`);
  return notes;
}

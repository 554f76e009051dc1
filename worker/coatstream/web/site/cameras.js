// The first view: all cameras, how to add one, and where to begin when there is nothing yet.

import { api, el } from "./dom.js";
import { on, state } from "./store.js";
import { showTiles } from "./tiles.js";

export function camerasView(main, signal) {
  const count = el("h1", {}, "Cameras");
  const body = el("div");
  const adding = el("button", { type: "button", onclick: () => addCamera() }, "Add a camera");
  main.append(el("div.heading", {}, count, state.role === "change" ? adding : null), body);
  let shape = "";
  function update() {
    const next = !state.known ? "waiting" : state.cameras.size ? "tiles" : "empty";
    if (next === shape) return;
    shape = next;
    body.replaceChildren();
    if (next === "tiles") showTiles(body, signal);
    else body.append(next === "empty" ? beginning() : el("p.hint", {}, "Waiting for the worker…"));
  }
  update();
  on("cameras", update, signal);
}

function beginning() {
  return el("section.begin", {},
    el("h2", {}, "No camera yet"),
    el("p", {}, "Let the workers read one:"),
    el("pre", {}, el("code", {}, "coatstream cameras add door-1 rtsp://10.0.0.7/stream1")),
    el("p", {}, "or put pictures into the queue:"),
    el("pre", {}, el("code", {}, "coatstream enqueue photos/ --source door-1")),
    el("p", {}, "Labels of the queue's sources are in the view ", el("a", { href: "#/queue" }, "Queue"), ". No worker? ",
      el("code", {}, "coatstream run"), " starts one."));
}

const FIELDS = [
  ["name", "Name", { required: true, maxlength: 128, autocomplete: "off" }, "as it shall stand in labels, such as door-1"],
  ["url", "Address", { required: true, maxlength: 2048, autocomplete: "off" }, "rtsp://, http://, udp:// or tcp://"],
  ["username", "User", { maxlength: 256, autocomplete: "off" }, ""],
  ["password", "Password", { type: "password", maxlength: 1024, autocomplete: "off" }, "kept in Redis, shown nowhere"],
  ["fps", "Pictures a second", { type: "number", min: 0, max: 1000, step: "any" }, "5 if left empty"],
];

function addCamera() {
  const trouble = el("p.trouble", { role: "alert" });
  const inputs = FIELDS.map(([key, , attributes]) => el("input", { id: `new-${key}`, name: key, ...attributes }));
  const form = el("form", { method: "dialog" },
    el("h2", { id: "new-title" }, "Add a camera"),
    FIELDS.map(([key, label, , hint], place) => el("p.field", {}, el("label", { for: `new-${key}` }, label), inputs[place],
      hint ? el("span.hint", {}, hint) : null)),
    trouble,
    el("p.buttons", {}, el("button", {}, "Add"), el("button.quiet", { type: "button", onclick: () => dialog.close() }, "Cancel")));
  const dialog = el("dialog", { "aria-labelledby": "new-title", onclose: () => dialog.remove() }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(form).entries().filter(([, value]) => value !== ""));
    if (values.fps) values.fps = Number(values.fps);
    try {
      await api("/cameras", { method: "POST", body: values });
      dialog.close();
    } catch (failure) {
      trouble.textContent = failure.message;
      trouble.scrollIntoView({ block: "center" }); // on a phone it would be below the edge
    }
  });
  document.body.append(dialog);
  dialog.showModal();
}

// Asks before what cannot be undone. Resolves to true or false.
export function confirmed(question, action) {
  return new Promise((resolve) => {
    let answer = false;
    const dialog = el("dialog", { "aria-label": "Are you sure?", onclose: () => { dialog.remove(); resolve(answer); } },
      el("p", {}, question),
      el("p.buttons", {},
        el("button.danger", { type: "button", onclick: () => { answer = true; dialog.close(); } }, action),
        el("button.quiet", { type: "button", onclick: () => dialog.close() }, "Cancel")));
    document.body.append(dialog);
    dialog.showModal();
  });
}

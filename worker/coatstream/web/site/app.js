// Shows one view at a time, by the part of the address behind #; says when the worker is lost, and what has happened.

import { cameraView } from "./camera.js";
import { camerasView } from "./cameras.js";
import { deadView } from "./dead.js";
import { api, seconds, shown, write } from "./dom.js";
import { queueView } from "./queue.js";
import { searchView } from "./search.js";
import { on, start, state } from "./store.js";
import { showStrip } from "./strip.js";

const VIEWS = { "": [camerasView, "Cameras"], camera: [cameraView, "Camera"], search: [searchView, "Search"], queue: [queueView, "Queue"], dead: [deadView, "Dead letters"] };
const SAY_EVERY = 5000; // ms between two sentences for screen readers: a summary, not each label
const ASK_AGAIN = 2000; // ms
const main = document.getElementById("main");
const lost = document.getElementById("lost");
let shownView = null;

function route() {
  if (!location.hash.startsWith("#/") && location.hash !== "") return main.focus();
  const [, view = "", argument = ""] = location.hash.split("/");
  const [show, title] = VIEWS[view] ?? VIEWS[""];
  shownView?.abort();
  const moved = shownView !== null;
  shownView = new AbortController();
  main.replaceChildren();
  document.title = `${title} · coatstream`;
  for (const link of document.querySelectorAll("nav a")) {
    const own = link.getAttribute("href").split("/")[1];
    if (own === view || (view === "camera" && own === "")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  show(main, shownView.signal, decoded(argument));
  if (moved) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function tellLink() {
  const away = state.lostSince ? `Connection to the worker lost ${seconds((performance.now() - state.lostSince) / 1000)} ago. Trying again…` : "";
  const trouble = away || (state.trouble ? `The worker cannot read Redis: ${state.trouble}` : "");
  write(lost, trouble);
  lost.hidden = !trouble;
  document.body.classList.toggle("lost", Boolean(trouble));
}

const happened = [];
function tell() {
  if (!happened.length) return;
  const last = happened.splice(0).slice(-3);
  write(document.getElementById("said"), last.join(". "));
}

on("link", tellLink);
on("event", ({ kind, camera, tag, detail }) => {
  if (kind === "tag.started") happened.push(`${shown(camera)}: ${shown(tag)}`);
  if (kind === "camera.state") happened.push(`${shown(camera)} is ${shown(detail.state)}`);
});
setInterval(tell, SAY_EVERY);
addEventListener("hashchange", route);

// Until it is known who looks, the page is that of one who may only look; a worker that is away is asked again.
async function enter() {
  const session = await api("/session").catch(() => null);
  if (!session) setTimeout(enter, ASK_AGAIN);
  const role = session?.role ?? "look";
  const isOther = role !== state.role;
  state.role = role;
  document.getElementById("logout").hidden = !session?.login;
  document.body.dataset.role = role;
  if (isOther || !shownView) route();
}

start(); // the stream opens while the role is asked for
showStrip(document.getElementById("strip"));
await enter();

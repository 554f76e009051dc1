// Dead letters: the picture, the reason, back into the queue or away.

import { confirmed } from "./cameras.js";
import { api, el, name, query, shown, stamp, write } from "./dom.js";
import { on, state } from "./store.js";

const REASONS = {
  undecodable: "no picture that can be read", invalid: "fields that make no sense", too_large: "too large",
  model_error: "the model fails on it", delivery_limit: "it was in the hands of workers that died",
};

export function deadView(main, signal) {
  const stream = el("select", { id: "stream" });
  const reason = el("select", { id: "reason" }, el("option", { value: "" }, "all"), Object.keys(REASONS).map((one) => el("option", { value: one }, one)));
  const source = el("input", { id: "source", type: "search", autocomplete: "off" });
  const hint = el("p.hint", { role: "status" });
  const told = el("p.hint", { role: "status" });
  const list = el("ol.cards");
  const more = el("button", { type: "button", hidden: true, onclick: () => load() }, "More");
  const form = el("form.bar-form", {},
    el("p.field", {}, el("label", { for: "stream" }, "Queue"), stream),
    el("p.field", {}, el("label", { for: "reason" }, "Reason"), reason),
    el("p.field", {}, el("label", { for: "source" }, "Source"), source),
    el("button", {}, "Show"));
  main.append(el("div.heading", {}, el("h1", {}, "Dead letters")),
    el("p.hint", {}, "Frames that could not be labelled. They stay until they are replayed, dropped, or make room for newer ones."), form, hint, told, list, more);
  let next = null, turn = 0;

  function fillStreams() {
    const names = (state.overview?.queues ?? []).map((queue) => queue.stream);
    if (stream.dataset.names === names.join("\n")) return;
    stream.dataset.names = names.join("\n");
    const chosen = stream.value;
    stream.replaceChildren(...names.map((one) => el("option", { value: one }, shown(one))));
    if (names.includes(chosen)) stream.value = chosen;
  }

  async function load() {
    const mine = turn;
    more.hidden = true;
    try {
      let found = { items: [], next };
      for (let tries = 0; tries < 20 && !found.items.length && (tries === 0 || found.next); tries++) {
        found = await api(`/dead${query({ stream: stream.value, reason: reason.value, source: source.value, after: found.next, limit: 20 })}`, { signal });
        if (mine !== turn) return;
      }
      list.append(...found.items.map((letter) => card(letter, told, settled)));
      next = found.next;
      more.hidden = !next;
      count();
    } catch (failure) {
      if (failure.name !== "AbortError") write(hint, failure.message);
    }
  }

  function count() {
    const none = reason.value || source.value ? "No dead letter like that." : "No dead letters.";
    write(hint, list.children.length ? `${list.children.length} letters, oldest first` : none);
  }

  function settled() {
    count();
    if (!list.children.length && next) load(); // the page is done with: the next one
  }

  function show() {
    turn++;
    next = null;
    write(told, "");
    list.replaceChildren();
    load();
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); show(); });
  for (const field of [stream, reason]) field.addEventListener("change", show);
  fillStreams();
  on("overview", fillStreams, signal);
  show();
}

function card(letter, told, then) {
  const where = `/api/dead/letters/${letter.letter}/picture${query({ stream: letter.stream })}`;
  const hasPicture = "image" in letter.sizes || "pixels" in letter.sizes;
  const picture = hasPicture ? el("img", { src: where, alt: shown(`picture of ${letter.source}`), loading: "lazy", width: 320, height: 180 }) : el("p.nopicture", {}, "no picture");
  if (hasPicture) picture.addEventListener("error", () => picture.replaceWith(el("p.nopicture", {}, "its picture cannot be shown")), { once: true });
  const act = async (what, done) => {
    if (node.inert) return;
    node.inert = true; // until it is answered: a second press would be told that the letter is gone
    try {
      const { outcomes } = await api(`/dead/${what}`, { method: "POST", body: { stream: letter.stream, letters: [letter.letter] } });
      const outcome = outcomes[letter.letter];
      if (outcome !== "impossible") node.remove();
      then();
      write(told, outcome === "done" ? `${done} ${letter.letter}` : outcome === "absent" ? "It was gone already." : "It cannot be put back: its frame is gone.");
      document.getElementById("main").focus();
    } catch (failure) {
      write(told, failure.message);
    }
    node.inert = false;
  };
  const buttons = state.role !== "change" ? null : el("p.buttons", {},
    el("button", { type: "button", "aria-label": `Replay ${letter.letter}`, onclick: () => act("replay", "Replayed") }, "Replay"),
    el("button.danger", {
      type: "button", "aria-label": `Drop ${letter.letter}`,
      onclick: async () => { if (await confirmed(`Delete ${letter.letter} with its picture?`, "Drop")) await act("drop", "Dropped"); },
    }, "Drop"));
  const node = el("li.card", {}, picture,
    el("h2", {}, name(letter.source)),
    el("p", {}, el("b", {}, shown(letter.reason)), REASONS[letter.reason] ? `: ${REASONS[letter.reason]}` : "", letter.died_at ? [" · ", stamp(letter.died_at)] : ""),
    el("p.why", {}, shown(letter.error)),
    el("p.facts", {}, [letter.frame_id && `frame ${shown(letter.frame_id)}`, letter.deliveries && `${shown(letter.deliveries)} deliveries`, letter.letter].filter(Boolean).join(" · ")),
    buttons);
  return node;
}

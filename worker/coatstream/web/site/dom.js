// Makes elements and words. Text goes in by textContent alone, so nothing that a stranger wrote is ever markup.

// What is not plain to see (control characters, marks that turn the direction of writing) is shown as its code.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029]/gu;
const JOINERS = new Set(["\u200c", "\u200d"]);

export function shown(text) {
  return String(text ?? "").replace(UNSEEN, (mark) =>
    JOINERS.has(mark) ? mark : `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}`);
}

// el("p.hint", {title: "..."}, "text", otherElement): attributes by name, listeners as on...
export function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

// A name that a stranger chose: its direction of writing ends with it. One of blanks alone is quoted, or nothing is seen.
export function name(text) {
  const made = document.createElement("bdi");
  const plain = shown(text);
  made.textContent = plain && !plain.trim() ? `"${plain}"` : plain;
  return made;
}

// Changes the text only where it is another, so that a screen reader and the layout are left alone.
export function write(node, text) {
  const next = shown(text);
  if (node.textContent !== next) node.textContent = next;
}

export function percent(share) {
  return share == null ? "" : `${Math.round(share * 100)} %`;
}

export function seconds(value) {
  if (value == null || !isFinite(value)) return "";
  if (value < 0.0995) return `${(value * 1000).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  if (value < 6000) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

export function rate(value) {
  return value == null ? "" : value < 9.95 ? value.toFixed(1) : String(Math.round(value));
}

const CLOCK = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE = new Intl.DateTimeFormat([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function clock(at) {
  const date = new Date(at * 1000);
  return (Date.now() - date < 43200000 ? CLOCK : DATE).format(date);
}

export function stamp(at) {
  return el("time", { datetime: new Date(at * 1000).toISOString() }, clock(at));
}

export function bar(share) {
  const fill = el("i");
  fill.style.inlineSize = `${Math.round(Math.min(1, Math.max(0, share)) * 100)}%`;
  return el("span.bar", { "aria-hidden": "true" }, fill);
}

// Calls the API. Throws an Error whose message is one line for a person.
export async function api(path, { method = "GET", body, signal } = {}) {
  const options = { method, signal, headers: { accept: "application/json" } };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(`/api${path}`, options);
  } catch (trouble) {
    if (trouble.name === "AbortError") throw trouble;
    throw new Error("the worker does not answer");
  }
  if (answer.status === 401) location.assign("/login");
  const found = await answer.json().catch(() => ({ error: `answer ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value != null);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

// A live preview: one canvas for as long as its tile lives. Bitmaps are closed at once, so hours of pictures leak nothing.

import { el, seconds, write } from "./dom.js";
import { now, on } from "./store.js";

const OLD = 5; // seconds after which a preview is no longer shown as if it were new
const frames = new Map(); // source -> set of previews that show it

on("preview", (message) => {
  for (const frame of frames.get(message.source) ?? []) frame.take(message);
});

export class Preview {
  constructor(source, signal) {
    this.source = source;
    this.at = 0;
    this.busy = false;
    this.next = null;
    this.canvas = el("canvas", { width: 320, height: 180, role: "img", "aria-label": "no picture yet" });
    this.age = el("span.age");
    this.node = el("span.preview.empty", {}, this.canvas, this.age);
    const own = frames.get(source) ?? new Set();
    frames.set(source, own.add(this));
    signal.addEventListener("abort", () => {
      own.delete(this);
      if (!own.size) frames.delete(source);
    }, { once: true });
  }

  // Only the newest waits: a tab that cannot keep up shows fewer pictures, never older ones.
  take(message) {
    this.next = message;
    if (!this.busy) this.draw();
  }

  async draw() {
    this.busy = true;
    while (this.next) {
      const message = this.next;
      this.next = null;
      try {
        const bitmap = await createImageBitmap(new Blob([bytes(message.jpeg)], { type: "image/jpeg" }));
        if (this.canvas.width !== bitmap.width) this.canvas.width = bitmap.width;
        if (this.canvas.height !== bitmap.height) this.canvas.height = bitmap.height;
        this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
        bitmap.close();
        if (!this.at) this.canvas.setAttribute("aria-label", "live picture");
        this.at = message.at;
        this.tick();
      } catch {
        // a damaged picture: the next one comes in half a second
      }
    }
    this.busy = false;
  }

  tick() {
    if (!this.at) return;
    const age = Math.max(0, now() - this.at);
    this.node.classList.remove("empty");
    this.node.classList.toggle("stale", age > OLD);
    write(this.age, age < 1.5 ? "live" : `${seconds(age)} old`);
  }
}

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) found[place] = raw.charCodeAt(place);
  return found;
}

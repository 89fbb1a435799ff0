// Pictures that no detector has looked at have no watermark score, so the list could not show them. Whoever filters or
// sorts by the score has the server look at the rest first, and sees how far it is.
import { api } from "../../../scripts/api.js";
import { element } from "./dom.js";
import { complain } from "./settings.js";
import { lookForWatermarks } from "./sidebar_api.js";

const PROGRESS = "feedback_loop.watermarks"; // the server sends it after every few pictures

export class Watermarks {
  /** @param filters says whether the score is asked for; `finished` is called when scores came that were waited for */
  constructor(filters, finished) {
    this.filters = filters;
    this.finished = finished;
    this.line = element("p", { className: "fl-watermarks-line", role: "status" });
    this.bar = element("progress", { className: "fl-meter", "aria-label": "Looking for watermarks" });
    this.element = element("div", { className: "fl-watermarks", hidden: "" }, this.line, this.bar);
    this.heard = 0;
    api.addEventListener(PROGRESS, ({ detail }) => this.#hear(detail));
  }

  /** Called with every new list. */
  async need() {
    if (!this.filters.asksForWatermarks) return void (this.element.hidden = true);
    try {
      const before = this.heard;
      const looked = await lookForWatermarks();
      // What is few is done before the answer is here.
      if (this.heard === before) this.#show(looked);
      else if (looked.left && !this.left) this.finished();
    } catch (error) {
      complain("Pictures could not be looked at for watermarks", error);
    }
  }

  #hear(looked) {
    const waited = !this.element.hidden;
    this.heard += 1;
    this.left = looked.left;
    this.#show(looked);
    if (waited && !looked.left && this.filters.asksForWatermarks) this.finished();
  }

  #show({ done, left }) {
    this.element.hidden = !left || !this.filters.asksForWatermarks;
    this.bar.max = Math.max(done + left, 1);
    this.bar.value = done;
    const so = `${done.toLocaleString()} of ${(done + left).toLocaleString()} pictures`;
    this.line.textContent = `Looking for watermarks: ${so}. Those with a score are listed.`;
  }
}

// Queues the workflow that is open once enough new judgements were stored, so that a reward or a LoRA is trained on.
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { watch } from "./sidebar_interactions.js";

const DEFAULT_EVERY = 10;

export class QueueAfter {
  #from = null;
  #seen = null;

  constructor() {
    this.on = element("input", { type: "checkbox" });
    this.every = element("input", { type: "number", className: "fl-field fl-short", min: 1, max: 9999, value: DEFAULT_EVERY });
    this.every.setAttribute("aria-label", "After how many new ratings");
    this.left = element("p", { className: "fl-count", role: "status" });
    const label = element("label", { className: "fl-choice" }, this.on, "Queue this workflow after every", this.every, "new ratings");
    this.element = element("div", {}, label, this.left);
    this.on.addEventListener("change", () => this.#begin());
    this.every.addEventListener("input", () => this.#show());
  }

  get #wanted() {
    return Math.max(Math.floor(Number(this.every.value)) || DEFAULT_EVERY, 1);
  }

  #begin() {
    this.#from = this.on.checked ? this.#seen : null;
    this.#show();
  }

  /** @param judgements how many the store holds now */
  see(judgements) {
    this.#seen = judgements;
    if (!this.on.checked) return;
    this.#from = Math.min(this.#from ?? judgements, judgements); // some may have been taken back
    if (judgements - this.#from >= this.#wanted) {
      this.#from = judgements;
      watch.ignoreNext();
      app.queuePrompt(0, 1);
      const detail = `${this.#wanted} new ratings are stored, so the workflow that is open was queued.`;
      app.extensionManager.toast.add({ severity: "info", summary: "Queued", detail, life: 5000 });
    }
    this.#show();
  }

  #show() {
    const missing = this.#wanted - ((this.#seen ?? 0) - (this.#from ?? 0));
    this.left.textContent = this.on.checked && this.#from !== null ? `${missing} more until the next run` : "";
  }
}

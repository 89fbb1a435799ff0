// A picture as large as the window allows, with its prompt and its stars. Left and right walk through the pictures, a
// key from 1 to 5 rates and goes on, Space or Escape closes.
import { element } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { takeKeys } from "./keys.js";
import { pictures } from "./pictures.js";
import { Stars } from "./stars.js";

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };
const HINT = "1–5 rate and go on · ← → walk · Space closes";

/** Opens over the page. `rate(id, stars)` stores; `closed(id)` gets the picture that was shown last. */
export function openFullView(ids, startId, { rate, closed }) {
  const view = new FullView(ids, ids.indexOf(startId), rate);
  view.element.addEventListener("close", () => closed(view.id));
  document.body.append(view.element);
  view.element.showModal();
  view.takeKeys();
}

class FullView {
  constructor(ids, position, rate) {
    this.ids = ids;
    this.image = element("img", { className: "fl-full-image", draggable: "false" });
    this.count = element("span", { className: "fl-count" });
    this.prompt = element("p", { className: "fl-prompt" });
    this.stars = new Stars((stars) => rate(this.id, stars));
    this.rate = rate;
    this.element = element(
      "dialog",
      { className: "fl-full", "aria-label": "Rate pictures", tabindex: -1, on: { keydown: (event) => this.#key(event) } },
      element("div", { className: "fl-full-stage" }, this.#stepButton("ArrowLeft", "‹"), this.image, this.#stepButton("ArrowRight", "›")),
      this.prompt,
      this.stars.element,
      element("p", { className: "fl-hint" }, this.count, element("span", { text: HINT })),
    );
    this.element.addEventListener("click", (event) => event.target === this.element && this.element.close());
    this.#follow();
    this.#go(position);
  }

  get id() {
    return this.ids[this.position];
  }

  takeKeys() {
    this.element.focus();
    takeKeys(this.element, (stars) => {
      this.rate(this.id, stars);
      if (pictures.starsOf(this.id)) this.#go(this.position + 1);
    });
  }

  #stepButton(key, text) {
    const label = STEPS[key] > 0 ? "Next picture" : "Previous picture";
    const go = () => this.#go(this.position + STEPS[key]);
    return element("button", { className: "fl-step", type: "button", "aria-label": label, text, on: { click: go } });
  }

  #follow() {
    const show = () => this.#showStars();
    pictures.addEventListener("change", show);
    this.element.addEventListener("close", () => {
      pictures.removeEventListener("change", show);
      this.element.remove();
    });
  }

  #go(position) {
    if (position < 0 || position >= this.ids.length) return;
    this.position = position;
    const { prompt, seed, width, height } = pictures.get(this.id);
    this.image.src = pictureUrl(this.id);
    this.image.alt = prompt ?? "Captured picture";
    this.image.style.setProperty("--fl-ratio", width / height);
    this.image.classList.toggle("fl-pixels", Math.max(width, height) <= 128);
    this.count.textContent = `${position + 1} of ${this.ids.length}`;
    this.prompt.textContent = [prompt, seed && `seed ${seed}`].filter(Boolean).join("  ·  ");
    this.#showStars();
  }

  #showStars() {
    this.stars.show(pictures.starsOf(this.id));
    this.stars.setReachable(true);
  }

  #key(event) {
    const closes = event.key === "Escape" || (event.key === " " && event.target.tagName !== "BUTTON");
    if (closes) this.element.close(); // Escape too: ComfyUI binds it and would prevent the dialog's own closing.
    else if (STEPS[event.key]) this.#go(this.position + STEPS[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

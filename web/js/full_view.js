// A picture as large as the window allows, with everything that can be said of it. Left and right walk through the
// pictures, a key from 1 to 5 rates and goes on, Space or Escape closes.
import { Comments } from "./comment.js";
import { element } from "./dom.js";
import { keepNativeKeys, takeKeys } from "./keys.js";
import { marks } from "./marks.js";
import { starsFor } from "./picture_card.js";
import { PictureStage } from "./picture_stage.js";
import { pictures } from "./pictures.js";
import { Regions } from "./regions.js";
import { said } from "./said.js";
import { complain, complaints } from "./settings.js";
import { Tags } from "./tags.js";
import { WordMarks } from "./word_marks.js";

const HINT = "1–5 rate and go on · ← → walk · u takes back · t comment · Space closes";

/**
 * Opens over the page. `on`: rate(id, number) stores; closed(id) gets the picture that was shown last; and, where they
 * differ from stars, judge(id) -> what judges a picture (picture_card.js), accept(id) for Enter;
 * `part: "comment"` begins there.
 */
export function openFullView(ids, startId, on) {
  const view = new FullView(ids, ids.indexOf(startId), on);
  view.element.addEventListener("close", () => on.closed?.(view.id));
  document.body.append(view.element);
  view.element.showModal();
  view.takeKeys();
  return view;
}

class FullView {
  constructor(ids, position, on) {
    this.ids = ids;
    this.on = on;
    this.count = element("span", { className: "fl-count" });
    this.prompt = element("p", { className: "fl-prompt" });
    this.rating = element("div", { className: "fl-full-rating" });
    this.status = element("span", { className: "fl-full-status", role: "status" });
    this.regions = new Regions();
    this.stage = new PictureStage(this.regions);
    this.comments = new Comments();
    this.parts = [this.regions, new WordMarks(), new Tags(), this.comments];
    const attributes = { className: "fl-full", "aria-label": "Rate and mark pictures", tabindex: -1 };
    this.element = element("dialog", { ...attributes, on: { keydown: (event) => this.#key(event) } }, this.#layout());
    this.element.addEventListener("click", (event) => event.target === this.element && this.element.close());
    this.#follow();
    this.#go(position);
  }

  #layout() {
    const steps = [this.#stepButton(-1, "‹", "Previous picture"), this.#stepButton(1, "›", "Next picture")];
    // A mark made by pointer leaves the focus with the view, so that the arrow keys still walk and don't move the cross.
    this.stage.element.addEventListener("mousedown", (event) => {
      event.preventDefault();
      this.element.focus();
    });
    const stage = element("div", { className: "fl-full-stage" }, steps[0], this.stage.element, steps[1]);
    const hint = element("p", { className: "fl-hint" }, this.count, element("span", { text: this.on.accept ? `Enter takes it · ${HINT}` : HINT }), this.status);
    const picture = element("div", { className: "fl-full-picture" }, stage, this.prompt, this.rating, hint);
    const close = { className: "fl-button fl-close", type: "button", text: "Close", title: "Close (Space or Escape)" };
    const closeButton = element("button", { ...close, on: { click: () => this.element.close() } });
    const aside = element("div", { className: "fl-full-aside" }, closeButton, ...this.parts.map((part) => part.element));
    return element("div", { className: "fl-full-inner" }, picture, aside);
  }

  get id() {
    return this.ids[this.position];
  }

  takeKeys() {
    const walk = (step) => () => this.#go(this.position + step);
    const actions = {
      pick: (number) => this.#rate(number),
      left: walk(-1),
      right: walk(1),
      back: walk(-1),
      zoom: () => this.element.close(),
      undo: () => this.#undo(),
      comment: () => this.comments.focus(),
      accept: () => this.#accept(),
    };
    this.element.focus();
    takeKeys(this.element, () => {}, actions);
    if (this.on.part === "comment") this.comments.focus();
  }

  #rate(number) {
    const { id } = this;
    this.on.rate(id, number);
    if (pictures.get(id).rating) this.#go(this.position + 1);
  }

  #accept() {
    if (!this.on.accept) return this.#go(this.position + 1);
    this.element.close();
    this.on.accept(this.id);
  }

  async #undo() {
    try {
      const undone = await said.undo();
      const position = this.ids.findIndex((id) => undone?.ids.includes(id));
      if (position >= 0 && !undone.ids.includes(this.id)) this.#go(position);
      this.status.textContent = undone ? `Took back: ${undone.words}` : "Nothing to take back";
    } catch (error) {
      complain("It could not be taken back", error);
    }
  }

  #stepButton(step, text, label) {
    const click = () => this.#go(this.position + step);
    return element("button", { className: "fl-step", type: "button", "aria-label": label, text, on: { click } });
  }

  #follow() {
    const onRating = ({ detail }) => detail.id === this.id && this.#showRating();
    const onMark = ({ detail }) => detail.id === this.id && this.#showMarks();
    const onComplaint = ({ detail }) => (this.status.textContent = detail);
    pictures.addEventListener("change", onRating);
    complaints.addEventListener("complaint", onComplaint);
    marks.addEventListener("change", onMark);
    this.element.addEventListener("close", () => {
      this.comments.store();
      pictures.removeEventListener("change", onRating);
      marks.removeEventListener("change", onMark);
      complaints.removeEventListener("complaint", onComplaint);
      pictures.seen(null);
      this.element.remove();
    });
  }

  #go(position) {
    if (position < 0 || position >= this.ids.length) return;
    this.position = position;
    const { id } = this;
    pictures.seen(id);
    const { prompt, seed } = pictures.get(id);
    this.stage.show(id);
    this.count.textContent = `${position + 1} of ${this.ids.length}`;
    this.prompt.textContent = [prompt, seed && `seed ${seed}`].filter(Boolean).join("  ·  ");
    this.status.textContent = "";
    this.judge = (this.on.judge ?? ((one) => starsFor(one, this.on.rate)))(id);
    this.rating.replaceChildren(this.judge.element);
    this.#showRating();
    this.#showMarks();
    marks.need(id).catch((error) => complain("The marks of this picture could not be read", error));
  }

  #showRating() {
    this.judge?.show();
    this.judge?.setReachable(true);
  }

  #showMarks() {
    this.stage.showMarks();
    for (const part of this.parts) part.show(this.id);
  }

  #key(event) {
    keepNativeKeys(event);
    if (event.key !== "Escape") return;
    this.element.close(); // ComfyUI binds Escape and would prevent the dialog's own closing.
    event.preventDefault();
    event.stopPropagation();
  }
}

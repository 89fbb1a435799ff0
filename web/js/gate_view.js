// One run that waits: its pictures, the time that is left, and the answer. Several that wait here are asked about one
// after the other.
import { element, secondsSince } from "./dom.js";
import { openFullView } from "./full_view.js";
import { Choice } from "./gate_choice.js";
import { gates } from "./gate_list.js";
import { MaskPainter } from "./gate_mask.js";
import { keepNativeKeys } from "./keys.js";
import { PictureCard } from "./picture_card.js";
import { PictureGrid } from "./picture_grid.js";
import { pictures } from "./pictures.js";
import { said } from "./said.js";
import { complain } from "./settings.js";
import { takeBack } from "./take_back.js";

const IDLE = "When a run comes to this node it stops, and its pictures appear here for you to choose from.";
const UNREAD = "A run waits here, but its pictures can't be read at this moment. They are asked for again until they can.";
const TAKE_BACK = "What you said of the pictures no longer counts; the run has gone on with it all the same";
const TICK = 500; // ms
const THEN = {
  skip: "nothing goes on",
  first: "the first picture goes on",
  "best by reward": "the reward's best goes on",
  fail: "the run fails",
};

export class GateView {
  #gate = null;
  #last = null; // how the wait before ended: {how, images}

  /** @param which function that gives the waits shown here, the next one first */
  constructor(which) {
    this.which = which;
    this.#build();
    this.onChange = () => this.show();
    this.onSaid = () => this.#showIdle();
    for (const event of ["said", "undone"]) said.addEventListener(event, this.onSaid);
    this.onPicture = ({ detail }) => this.grid.showChange(detail.id);
    gates.addEventListener("change", this.onChange);
    pictures.addEventListener("change", this.onPicture);
    this.show();
  }

  #build() {
    const button = (title, click) => element("button", { className: "fl-button", type: "button", title, on: { click } });
    this.title = element("span", { className: "fl-gate-title", role: "status" });
    this.time = element("span", { className: "fl-gate-time" });
    const actions = {
      pick: (_id, number) => this.#pickNumber(number),
      accept: (id) => this.#accept(id),
      zoom: (id) => this.#open(id),
      comment: () => this.comment.focus(),
      undo: () => takeBack(this.title),
    };
    this.grid = new PictureGrid("Pictures to decide about", (id, focus) => this.#card(id, focus), () => {}, actions);
    this.body = element("div", { className: "fl-body" }, this.grid.element);
    const field = { className: "fl-aside-field", rows: 1, placeholder: "Comment", "aria-label": "Comment, goes on as text" };
    this.comment = element("textarea", field);
    this.go = button("The run goes on with this (Enter on a picture)", () => this.#send());
    this.go.classList.add("fl-gate-go");
    this.none = button("Nothing goes on: what comes after this node does not run", () => this.#send("reject"));
    this.mark = button("Paint over a part of the picture that goes on (first): it leaves as a mask", () => this.#toggleMask());
    this.unmark = button("Paint the mask anew", () => this.#clearMask());
    const says = element("div", { className: "fl-bar" }, this.comment, this.mark, this.unmark);
    this.foot = element("div", { className: "fl-gate-foot" }, says, element("div", { className: "fl-bar" }, this.go, this.none));
    this.head = element("div", { className: "fl-bar" }, this.title, this.time);
    this.note = element("p", { className: "fl-empty", role: "status" });
    this.undo = button(TAKE_BACK, () => takeBack(this.note));
    this.undo.textContent = "Take back what I said";
    this.end = element("div", { className: "fl-gate-end" }, this.note, this.undo);
    const inner = element("div", { className: "fl-inner" }, this.head, this.body, this.foot, this.end);
    const on = { keydown: (event) => this.#key(event) };
    this.element = element("div", { className: "fl-capture fl-gate", on }, inner);
  }

  #card(id, focus) {
    const place = element("button", { className: "fl-place", type: "button", on: { click: () => this.#pick(id) } });
    const judge = {
      element: place,
      show: () => this.#showPlace(id, place),
      words: () => this.choice.wordsOf(id),
      given: () => this.choice.has(id),
      setReachable: (reachable) => (place.tabIndex = reachable ? 0 : -1),
    };
    return new PictureCard(id, { open: (one) => this.#open(one), click: (one) => this.#pick(one), focus }, judge);
  }

  #showPlace(id, button) {
    const number = element("kbd", { text: String(this.choice.numberOf(id)) });
    button.replaceChildren(number, this.choice.labelOf(id), ...(this.mask?.id === id ? [" · marked"] : []));
    button.setAttribute("aria-pressed", this.choice.has(id));
    button.setAttribute("aria-label", this.choice.wordsOf(id));
  }

  /** Shows what waits now; called whenever that may have changed. */
  show() {
    const [next] = this.which();
    if (next?.key !== this.#gate?.key) this.#begin(next ?? null);
    else if (next) this.#gate = next;
    this.#tick();
  }

  /** What the run went on with, once it did. */
  showEnd(ended) {
    this.#last = ended.at(-1) ?? null;
    if (!this.#gate) this.#showIdle();
  }

  async #begin(gate) {
    const hadFocus = this.element.contains(document.activeElement);
    this.#gate = gate;
    clearInterval(this.timer);
    this.painter = this.mask = null;
    this.comment.value = "";
    this.#busy(Boolean(gate));
    this.grid.show([]);
    if (!gate) this.failed = false;
    if (!gate) return this.#showIdle();
    this.timer = setInterval(() => this.#tick(), TICK);
    try {
      await pictures.need(gate.images);
    } catch (error) {
      if (this.#gate?.key === gate.key) this.#unread(error);
      return;
    }
    if (this.#gate?.key !== gate.key) return;
    this.failed = false;
    this.since = performance.now();
    this.choice = new Choice(gate);
    this.#busy(false);
    this.#showBody();
    this.grid.show(gate.images);
    this.#showChoice();
    if (hadFocus) this.grid.focus(gate.images[0]);
  }

  /** With the next look at what waits it is tried again: a database server may be away. */
  #unread(error) {
    if (!this.failed) complain("The pictures of a run that waits could not be read", error);
    this.failed = true;
    this.#gate = null;
    this.#showIdle();
  }

  #showIdle() {
    for (const part of [this.head, this.body, this.foot]) part.hidden = !this.#gate;
    this.end.hidden = Boolean(this.#gate);
    this.undo.hidden = !this.#last || this.#last.key !== gates.answered?.key || said.last !== gates.answered.said;
    const { how, images } = this.#last ?? {};
    this.note.textContent = how ? `The run ${images.length ? "went on" : "ended here"}: ${how}.` : IDLE;
    if (this.failed) this.note.textContent = UNREAD;
  }

  #showBody() {
    this.#showIdle();
    this.body.replaceChildren(this.painter ? this.painter.element : this.grid.element);
  }

  #showChoice() {
    const waiting = this.which().length;
    this.title.textContent = this.choice.title + (waiting > 1 ? ` (1 of ${waiting})` : "");
    this.go.textContent = this.choice.goOn;
    this.none.textContent = this.choice.none;
    this.mark.textContent = this.painter ? "Back to the pictures" : this.mask ? "Change mark" : "Mark";
    this.unmark.textContent = "Clear mark";
    this.unmark.hidden = !this.painter && !this.mask;
    this.go.disabled = this.sending || !this.choice.complete;
    for (const id of this.#gate.images) this.grid.showChange(id);
  }

  #tick() {
    if (!this.#gate) return;
    const { until, on_timeout: outcome } = this.#gate;
    const left = until === null ? null : Math.max(Math.ceil((until - performance.now()) / 1000), 0);
    this.time.textContent = left === null ? "waits as long as it takes" : `${clock(left)}, then ${THEN[outcome]}`;
    this.time.classList.toggle("fl-gate-soon", left !== null && left <= 10);
  }

  #pick(id) {
    if (this.sending) return;
    this.choice.pick(id);
    this.#showChoice();
  }

  #pickNumber(number) {
    const id = this.#gate?.images[number - 1];
    if (!id) return;
    this.#pick(id);
    this.grid.focus(id);
  }

  #accept(id) {
    if (this.choice.takesFirst(id)) this.#pick(id);
    else if (this.choice.complete) this.#send();
  }

  #open(id) {
    const rate = (one, stars) => pictures.rate(one, stars).catch((error) => complain("The rating was not stored", error));
    const accept = (one) => this.choice.takesFirst(one) && this.#pick(one);
    openFullView(this.#gate.images, id, { rate, accept, closed: (one) => this.grid.focus(one) });
  }

  async #toggleMask() {
    if (this.painter) {
      const { id } = this.painter;
      const mask = await this.painter.mask();
      this.mask = mask && { id, mask, painter: this.painter };
      this.painter = null;
    } else {
      const id = this.choice.picked[0] ?? this.#gate.images[0];
      if (this.choice.mode === "choose") this.choice.pick(id);
      this.painter = this.mask?.id === id ? this.mask.painter : new MaskPainter(id);
    }
    this.#showBody();
    this.#showChoice();
    if (this.painter) this.painter.focus();
    else this.mark.focus();
  }

  #clearMask() {
    this.painter?.clear();
    this.mask = null;
    this.#showChoice();
  }

  async #send(action = this.#gate.mode) {
    if (this.sending || !this.choice || (action !== "reject" && !this.choice.complete)) return;
    if (this.painter) await this.#toggleMask();
    const content = { action, images: action === "reject" ? [] : this.choice.picked, lead_time: secondsSince(this.since) };
    const comment = this.comment.value.trim();
    if (comment) content.comment = comment;
    // A mark on a picture that is not picked after all is none; on rejected ones it says what is wrong.
    if (this.mask && (action === "reject" || this.choice.has(this.mask.id))) Object.assign(content, { mask: this.mask.mask, mask_of: this.mask.id });
    this.#busy(true);
    try {
      await gates.answer(this.#gate, content, action === "reject" ? "a rejection" : `“${this.choice.goOn}”`);
    } catch (error) {
      complain("Your answer was not taken", error);
    }
    this.#busy(false);
    if (this.#gate) this.#showChoice();
  }

  #busy(busy) {
    this.sending = busy;
    for (const control of [this.go, this.none, this.mark]) control.disabled = busy;
  }

  #key(event) {
    keepNativeKeys(event);
    if (event.key !== "Escape" || !this.painter) return;
    this.#toggleMask();
    event.preventDefault();
    event.stopPropagation();
  }

  focus() {
    if (this.#gate) this.grid.focus(this.#gate.images[0]);
  }

  remove() {
    clearInterval(this.timer);
    gates.removeEventListener("change", this.onChange);
    for (const event of ["said", "undone"]) said.removeEventListener(event, this.onSaid);
    pictures.removeEventListener("change", this.onPicture);
    this.grid.remove();
  }
}

function clock(seconds) {
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(seconds % 60)}`;
}

// Two pictures of one prompt side by side: which is better? The server proposes the pair and says how it came to it.
import { Choices } from "./choices.js";
import { element, plural, secondsSince } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { AXIS, fetchPair } from "./judgement_api.js";
import { keepNativeKeys, takeKeys } from "./keys.js";
import { isMine, marks } from "./marks.js";
import { isPixelArt } from "./picture_card.js";
import { pictures } from "./pictures.js";
import { complain } from "./settings.js";

const ANSWERS = [
  { winner: "left", action: "left", key: "←", text: "Left", title: "The left picture is better" },
  { winner: "both_bad", action: "up", key: "↑", text: "Both bad", title: "Both pictures are bad" },
  { winner: "tie", action: "down", key: "↓", text: "Can't tell", title: "Neither is clearly better" },
  { winner: "right", action: "right", key: "→", text: "Right", title: "The right picture is better" },
];
const POLICIES = [
  { value: "learn", text: "To learn", title: "Pairs that teach a reward the most" },
  { value: "train", text: "To train", title: "Pairs that training can use best: clear differences" },
];
const NO_PAIR = "There are no two pictures left to compare here. Queue the graph again with another seed for more.";
const ids = (pair) => [pair.left, pair.right];

/** What I said of the pair last, either way round. */
const answerTo = (pair) =>
  marks
    .of(pair.left)
    .comparisons.filter((one) => isMine(one) && ids(one).every((id) => ids(pair).includes(id)) && one.axis === AXIS)
    .at(-1);

export class ComparePanel {
  #trail = []; // the pairs that were shown, the current one last
  #ahead = []; // pairs that `back` left
  #answered = 0;
  #loading = 0;

  /** @param on {collection(), undo()}; the collection is null for all of them, "" where none is named */
  constructor(on) {
    this.on = on;
    this.policy = new Choices("Which pairs to ask about", POLICIES, () => this.#ask());
    this.policy.show("learn");
    this.count = element("span", { className: "fl-count", role: "status" });
    this.sides = { left: this.#side("left", "Left picture"), right: this.#side("right", "Right picture") };
    this.prompt = element("p", { className: "fl-group-prompt" });
    this.buttons = ANSWERS.map((answer) => this.#answerButton(answer));
    this.backButton = this.#button("b", "Back", "The pair before, to say something else of it", () => this.back());
    this.zoomButton = this.#button("Space", "Large", "Both pictures as large as the window allows", () => this.zoom());
    this.none = element("p", { className: "fl-empty", text: NO_PAIR, hidden: "" });
    this.inner = this.#inner();
    this.element = element("div", { className: "fl-ab-place" }, this.inner);
    this.#takeKeys();
  }

  #inner() {
    const pair = element("div", { className: "fl-ab-pair" }, this.sides.left, this.sides.right);
    const answers = element("div", { className: "fl-ab-answers" }, ...this.buttons);
    const more = element("div", { className: "fl-bar" }, this.policy.element, this.count, this.backButton, this.zoomButton);
    const on = { keydown: (event) => this.#key(event), pointerenter: () => this.#hover() };
    const attributes = { role: "group", "aria-label": "Compare two pictures", tabindex: 0, on };
    const children = [this.prompt, pair, answers, more, this.none];
    return element("div", { className: "fl-ab", ...attributes }, ...children);
  }

  #side(winner, label) {
    const image = element("img", { className: "fl-ab-image", draggable: "false" });
    const frame = element("div", { className: "fl-ab-side", title: label, on: { click: () => this.answer(winner) } }, image);
    return Object.assign(frame, { image });
  }

  #button(key, text, title, click) {
    const label = [element("kbd", { text: key }), text];
    return element("button", { className: "fl-button", type: "button", title, on: { click } }, ...label);
  }

  #answerButton({ winner, key, text, title }) {
    const button = this.#button(key, text, title, () => this.answer(winner));
    button.dataset.winner = winner;
    return button;
  }

  #takeKeys() {
    const answers = ANSWERS.map(({ action, winner }) => [action, () => this.answer(winner)]);
    const actions = {
      ...Object.fromEntries(answers),
      pick: (number) => number <= 2 && this.answer(number === 1 ? "left" : "right"),
      back: () => this.back(),
      zoom: () => this.zoom(),
      undo: () => this.#undo(),
    };
    this.inner.addEventListener("focusin", () => takeKeys(this.inner, () => {}, actions));
  }

  #hover() {
    const typing = document.activeElement?.matches("input, textarea, [contenteditable='true']");
    if (!typing && !this.inner.contains(document.activeElement)) this.inner.focus({ preventScroll: true });
  }

  #key(event) {
    keepNativeKeys(event);
    const leaves = event.key === "Escape" && this.large;
    if (leaves) this.large.close();
    if (!leaves && event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
    event.stopPropagation(); // ComfyUI would delete the selected node, or leave the subgraph
  }

  get pair() {
    return this.#trail.at(-1);
  }

  get ids() {
    return this.pair ? ids(this.pair) : [];
  }

  /** Called when the node's pictures changed: asks for a pair unless one is on show. */
  show() {
    const collection = this.on.collection();
    if (this.pair && this.asked === collection) return this.#showPair();
    this.asked = collection;
    this.#trail = [];
    this.#ahead = [];
    return this.#ask();
  }

  async #ask() {
    const turn = ++this.#loading;
    if (this.asked === "") return this.#showPair();
    try {
      const pair = await fetchPair(this.asked, this.policy.value);
      if (pair) await pictures.need(ids(pair));
      if (turn !== this.#loading) return;
      if (pair) this.#trail.push({ ...pair, since: performance.now() });
      this.#showPair(Boolean(pair));
    } catch (error) {
      this.#showPair();
      complain("No pair could be fetched", error);
    }
  }

  async answer(winner) {
    const { pair } = this;
    if (!pair || pair.answering) return;
    pair.answering = true;
    const before = pair.answer && marks.of(pair.left).comparisons.find((one) => one === pair.answer);
    const { left, right, policy, propensity, since } = pair;
    const add = [{ left, right, winner, axis: AXIS, policy, propensity, lead_time: secondsSince(since) }];
    const words = ANSWERS.find((answer) => answer.winner === winner).title;
    try {
      await marks.change("comparisons", { add, remove: before ? [before] : [] }, words);
      pair.answer = answerTo(pair);
      this.#answered += before ? 0 : 1;
      await this.#forward();
    } catch (error) {
      complain("The comparison was not stored", error);
    } finally {
      pair.answering = false;
    }
  }

  async #forward() {
    if (!this.#ahead.length) return this.#ask();
    this.#trail.push(this.#ahead.pop());
    this.#showPair();
  }

  /** What is taken back can be said anew: its pair comes on show again. */
  async #undo() {
    const undone = await this.on.undo();
    const about = (pair) => ids(pair).every((id) => undone?.ids.includes(id));
    if (undone && !about(this.pair) && this.#trail.length > 1 && about(this.#trail.at(-2))) this.back();
  }

  back() {
    if (this.#trail.length < 2) return;
    this.#ahead.push(this.#trail.pop());
    this.pair.since = performance.now();
    this.#showPair();
  }

  #showPair(found = Boolean(this.pair)) {
    this.inner.classList.toggle("fl-ab-none", !found);
    this.none.hidden = found;
    this.count.textContent = this.#answered ? `${plural(this.#answered, "pair")} compared` : "";
    this.backButton.disabled = this.#trail.length < 2;
    if (!found) return;
    this.prompt.textContent = pictures.get(this.pair.left).prompt ?? "";
    for (const side of ["left", "right"]) this.#showSide(side);
    this.#showAnswer();
  }

  #showSide(side) {
    const { image } = this.sides[side];
    const id = this.pair[side];
    image.src = pictureUrl(id);
    image.alt = `${side} picture: ${pictures.get(id).prompt ?? "no prompt"}`;
    image.dataset.imageId = id;
    image.classList.toggle("fl-pixels", isPixelArt(pictures.get(id)));
  }

  #showAnswer() {
    const given = this.pair.answer && marks.of(this.pair.left).comparisons.find(({ id }) => id === this.pair.answer.id);
    for (const button of this.buttons) button.setAttribute("aria-pressed", given?.winner === button.dataset.winner);
    for (const side of ["left", "right"]) this.sides[side].classList.toggle("fl-chosen", given?.winner === side);
  }

  /** Moves the panel into a dialog that fills the window, or back. */
  zoom() {
    if (this.large) return this.large.close();
    this.large = element("dialog", { className: "fl-full fl-ab-large", "aria-label": "Compare pictures" }, this.inner);
    document.body.append(this.large);
    this.large.addEventListener("close", () => this.#shrink());
    this.large.showModal();
    this.inner.focus();
  }

  #shrink() {
    this.element.append(this.inner);
    this.large.remove();
    this.large = null;
    this.inner.focus({ preventScroll: true });
  }

  showChange(id) {
    if (this.ids.includes(id)) this.#showAnswer();
  }

  focus() {
    this.inner.focus({ preventScroll: true });
  }

  remove() {
    this.large?.close();
  }
}

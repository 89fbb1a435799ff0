// Two pictures side by side, one decision after the other: the server proposes each pair, a key answers it.
import { element } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { pictures } from "./pictures.js";
import { complain, currentRater } from "./settings.js";
import { nextPair, postComparison, takeBack } from "./sidebar_api.js";

const AXIS = "overall";
const PIXEL_ART_UP_TO = 128;
const POLICIES = {
  learn: "To learn: pairs that the reward is least sure of",
  train: "To train: pairs that show a clear difference",
};
const ANSWERS = {
  left: { key: "ArrowLeft", text: "← Left", title: "The left one is better" },
  tie: { key: "ArrowDown", text: "↓ Can't tell", title: "Neither is better" },
  both_bad: { key: "ArrowUp", text: "↑ Both bad", title: "Neither is any good" },
  right: { key: "ArrowRight", text: "Right →", title: "The right one is better" },
};
const NO_PAIR = "No pair is left to compare here. Capture more pictures with the same prompts, or choose another collection.";

export class CompareView {
  #pair = null;
  #given = []; // {id, pair}: what b takes back, latest last
  #busy = false;
  #turn = 0;

  /** @param collection function that says which collection is looked at, "" for all; @param judged called after each */
  constructor(collection, judged) {
    this.collection = collection;
    this.judged = judged;
    this.#build();
  }

  #build() {
    this.policy = element("select", { className: "fl-field", "aria-label": "Which pairs are asked", on: { change: () => this.next() } });
    this.policy.append(...Object.entries(POLICIES).map(([value, text]) => element("option", { value, text })));
    this.sides = { left: this.#side("left"), right: this.#side("right") };
    this.prompt = element("p", { className: "fl-pair-prompt" });
    this.status = element("p", { className: "fl-count", role: "status" });
    this.stage = element("div", { className: "fl-pair" }, this.sides.left.element, this.sides.right.element);
    this.buttons = Object.entries(ANSWERS).map(([winner, { text, title }]) => this.#button(text, title, () => this.answer(winner)));
    this.back = this.#button("b Back", "Take the last answer back and ask again (b)", () => this.goBack());
    this.zoom = this.#button("Large", "Show both large, or small again (Space)", () => this.toggleLarge());
    this.body = element(
      "div",
      { className: "fl-pair-body", tabindex: -1, "aria-label": "Which is better?", on: { keydown: (event) => this.#key(event) } },
      this.stage,
      this.prompt,
      element("div", { className: "fl-pair-answers" }, ...this.buttons),
      element("div", { className: "fl-bar" }, this.status, this.back, this.zoom),
    );
    this.element = element("div", { className: "fl-compare" }, this.policy, this.body);
  }

  #side(winner) {
    const image = element("img", { className: "fl-pair-image", draggable: "false" });
    const { title } = ANSWERS[winner];
    const options = { className: "fl-pair-side", type: "button", title, on: { click: () => this.answer(winner) } };
    return { image, element: element("button", options, image) };
  }

  #button(text, title, click) {
    return element("button", { className: "fl-button", type: "button", text, title, on: { click } });
  }

  focus() {
    this.body.focus({ preventScroll: true });
  }

  /** Asks for a pair, unless one is already shown. */
  async start() {
    if (!this.#pair) await this.next();
  }

  async next() {
    const turn = ++this.#turn;
    const asked = { policy: this.policy.value, collection: this.collection(), axis: AXIS, rater: currentRater() };
    try {
      const pair = await nextPair(asked);
      if (turn === this.#turn) await this.#show(pair?.left ? pair : null);
    } catch (error) {
      complain("No pair could be proposed", error);
    }
  }

  async #show(pair) {
    if (pair) await pictures.need([idOf(pair.left), idOf(pair.right)]);
    this.#pair = pair;
    this.body.classList.toggle("fl-no-pair", !pair);
    for (const [side, { image, element: frame }] of Object.entries(this.sides)) {
      const picture = pair && pictures.get(idOf(pair[side]));
      frame.disabled = !picture;
      if (!picture) continue;
      image.src = pictureUrl(picture.id);
      image.alt = `${side === "left" ? "Left" : "Right"}: ${picture.prompt ?? "captured picture"}`;
      image.classList.toggle("fl-pixels", Math.max(picture.width, picture.height) <= PIXEL_ART_UP_TO);
    }
    this.prompt.textContent = pair ? promptsOf(pair) : NO_PAIR;
    for (const button of this.buttons) button.disabled = !pair;
    this.#showCount();
  }

  #showCount() {
    this.back.disabled = !this.#given.length;
    this.status.textContent = this.#given.length ? `${this.#given.length} compared` : "";
  }

  async answer(winner) {
    const pair = this.#pair;
    if (!pair || this.#busy) return;
    this.#busy = true;
    try {
      const { id } = await postComparison(comparisonOf(pair, winner));
      this.#given.push({ id, pair });
      this.judged();
      await this.next();
    } catch (error) {
      complain("The comparison was not stored", error);
    } finally {
      this.#busy = false;
    }
  }

  /** Takes the last answer back and shows its pair again. */
  async goBack() {
    const last = this.#given.at(-1);
    if (!last || this.#busy) return;
    this.#busy = true;
    try {
      await takeBack(last.id);
      this.#given.pop();
      this.#turn++; // a pair that is still on its way must not replace this one
      await this.#show(last.pair);
      this.judged();
    } catch (error) {
      complain("The answer was not taken back", error);
    } finally {
      this.#busy = false;
    }
  }

  /** The same elements, moved into a dialog over the whole window and back. */
  toggleLarge() {
    if (this.dialog) return this.dialog.close();
    this.dialog = element("dialog", { className: "fl-full fl-pair-large", "aria-label": "Which is better?" }, this.body);
    this.dialog.addEventListener("close", () => {
      this.element.append(this.body);
      this.dialog.remove();
      this.dialog = null;
      this.focus();
    });
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.focus();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = event.target.tagName === "BUTTON";
    const winner = Object.keys(ANSWERS).find((name) => ANSWERS[name].key === event.key);
    if (winner) this.answer(winner);
    else if (event.key === "b") this.goBack();
    else if (event.key === " " && !onButton) this.toggleLarge();
    else if (event.key === "Escape" && this.dialog) this.dialog.close();
    else if (!["Delete", "Backspace"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  }
}

const idOf = (side) => side.id ?? side;

function promptsOf({ left, right }) {
  const prompts = [left, right].map((side) => pictures.get(idOf(side)).prompt).filter(Boolean);
  return [...new Set(prompts)].join("  |  ");
}

const comparisonOf = (pair, winner) => ({
  left: idOf(pair.left),
  right: idOf(pair.right),
  winner,
  axis: AXIS,
  rater: currentRater(),
  policy: pair.policy,
  propensity: pair.propensity,
});

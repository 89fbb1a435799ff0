// Click pictures in order, best first: the order is stored once every picture has its place, or when it is kept as it is.
import { element } from "./dom.js";
import { GroupView } from "./group_view.js";
import { AXIS } from "./judgement_api.js";
import { isMine, marks } from "./marks.js";
import { complain } from "./settings.js";

/** My latest ranking of pictures of the group, or undefined. */
export function rankingOf(group) {
  const mine = (ranking) => isMine(ranking) && ranking.axis === AXIS && ranking.image_ids.every((id) => group.includes(id));
  return group.flatMap((id) => marks.of(id).rankings).filter(mine).at(-1);
}

export class Rank extends GroupView {
  #order = []; // of the group on show, where it is not stored yet

  constructor(on) {
    super(on);
    this.keep = this.#button("Keep order", "Store the order of the pictures clicked so far", () => this.#store());
    this.again = this.#button("Start over", "Give the places anew", () => this.#startOver());
    this.foot.append(this.keep, this.again);
  }

  #button(text, title, click) {
    return element("button", { className: "fl-button", type: "button", text, title, on: { click } });
  }

  go(step) {
    this.#order = [];
    super.go(step);
  }

  get #shown() {
    if (this.#order.length || !this.group) return this.#order;
    return rankingOf(this.group)?.image_ids ?? [];
  }

  choose(id) {
    if (!this.#order.length) this.#order = [...this.#shown];
    if (this.#order.length === this.group.length) this.#order = []; // It was all in order: begin anew.
    this.#order = this.#order.includes(id) ? this.#order.filter((other) => other !== id) : [...this.#order, id];
    const left = this.group.filter((other) => !this.#order.includes(other));
    if (left.length === 1) this.#order.push(left[0]); // Only one place is left.
    if (left.length <= 1) this.#store();
    else this.showGroup();
  }

  async #store() {
    const { group } = this;
    const before = rankingOf(group);
    const order = this.#order;
    this.#order = [];
    const add = [{ image_ids: order, axis: AXIS }];
    const writing = marks.change("rankings", { add, remove: before ? [before] : [] }, `order of ${order.length} pictures`);
    this.advance();
    try {
      await writing;
    } catch (error) {
      complain("The order was not stored", error);
      this.#order = this.group === group ? order : [];
      this.showGroup();
    }
  }

  /** Places that are not stored yet are taken back one by one. */
  undo() {
    if (!this.#order.length) return super.undo();
    this.#order.pop();
    this.showGroup();
  }

  async #startOver() {
    const before = rankingOf(this.group);
    this.#order = [];
    this.showGroup();
    if (!before) return;
    try {
      await marks.remove("rankings", before, "no order");
    } catch (error) {
      complain("The order was not taken back", error);
    }
    this.showGroup();
  }

  isDone(group) {
    return Boolean(rankingOf(group));
  }

  isGiven(id) {
    return this.#shown.includes(id);
  }

  placeInWords(id) {
    const place = this.#shown.indexOf(id) + 1;
    return place ? `place ${place}` : "no place yet";
  }

  showPlace(id, button) {
    const place = this.#shown.indexOf(id) + 1;
    const number = this.group?.includes(id) ? this.numberOf(id) : "";
    button.replaceChildren(element("kbd", { text: String(number) }), place ? `Place ${place}` : "–");
    button.setAttribute("aria-pressed", place > 0);
    button.setAttribute("aria-label", `Picture ${number}: ${this.placeInWords(id)}`);
  }

  showHint() {
    const { group } = this;
    const stored = group && !this.#order.length && rankingOf(group);
    this.keep.hidden = this.#order.length < 2;
    this.again.hidden = !stored && !this.#order.length;
    this.hint.textContent = stored ? "This order is stored." : "Click them in order, best first, or press their numbers.";
  }
}

// Pictures of one prompt at a time, for judgements that only make sense among pictures of the same prompt.
import { element } from "./dom.js";
import { PictureCard } from "./picture_card.js";
import { PictureGrid } from "./picture_grid.js";
import { pictures } from "./pictures.js";

const MOST = 9; // as many as there are digit keys

/** Sets of 2 to 9 pictures with one prompt: those of the last run first, then the others, newest first. */
export function groupsOf(ids, run = []) {
  const sets = [ids.filter((id) => run.includes(id)), ids.filter((id) => !run.includes(id))];
  const groups = sets.flatMap((set) => {
    const prompts = [...new Set(set.map(promptOf))];
    return prompts.flatMap((prompt) => inPieces(set.filter((id) => promptOf(id) === prompt)));
  });
  return groups.filter((group) => group.length > 1);
}

const promptOf = (id) => pictures.get(id).prompt ?? "";

function inPieces(ids) {
  const pieces = Math.ceil(ids.length / MOST);
  const size = Math.ceil(ids.length / pieces);
  return Array.from({ length: pieces }, (_, piece) => ids.slice(piece * size, (piece + 1) * size));
}

export class GroupView {
  #position = 0;

  /** @param on {open(id), undo()} */
  constructor(on) {
    this.on = on;
    this.prompt = element("p", { className: "fl-group-prompt" });
    this.where = element("span", { className: "fl-where", role: "status" });
    this.previous = this.#step("‹", "Pictures of the prompt before (b)", -1);
    this.next = this.#step("›", "Pictures of the next prompt", 1);
    this.hint = element("p", { className: "fl-hint" });
    this.none = element("p", { className: "fl-empty", text: "There are no two pictures of the same prompt here yet." });
    const card = (id, focus) => this.#card(id, focus);
    const actions = {
      pick: (_id, number) => this.group?.[number - 1] && this.choose(this.group[number - 1]),
      accept: (id) => this.choose(id),
      zoom: (id) => on.open(id),
      comment: (id) => on.open(id, "comment"),
      back: () => this.go(-1),
      undo: () => this.undo(),
    };
    this.grid = new PictureGrid("Pictures of one prompt", card, () => {}, actions);
    this.foot = element("div", { className: "fl-bar" }, this.hint);
    const head = element("div", { className: "fl-bar" }, this.previous, this.where, this.next);
    this.element = element("div", { className: "fl-group" }, head, this.prompt, this.grid.element, this.foot, this.none);
    this.accept = (id) => this.choose(id);
  }

  /** What was taken back comes on show. */
  async undo() {
    const undone = await this.on.undo();
    if (undone) this.goTo(undone.ids[0]);
  }

  #step(text, title, step) {
    const click = () => this.go(step);
    return element("button", { className: "fl-button", type: "button", text, title, "aria-label": title, on: { click } });
  }

  #card(id, focus) {
    const place = element("button", { className: "fl-place", type: "button", on: { click: () => this.choose(id) } });
    const judge = {
      element: place,
      show: () => this.showPlace(id, place),
      words: () => this.placeInWords(id),
      given: () => this.isGiven(id),
      setReachable: (reachable) => (place.tabIndex = reachable ? 0 : -1),
    };
    return new PictureCard(id, { open: this.on.open, click: (chosen) => this.choose(chosen), focus }, judge);
  }

  get ids() {
    return this.grid.ids;
  }

  get group() {
    return this.groups?.[this.#position];
  }

  numberOf(id) {
    return this.group.indexOf(id) + 1;
  }

  show(ids, run) {
    const before = this.group?.[0];
    this.groups = groupsOf(ids, run);
    this.#position = Math.max(this.groups.findIndex((group) => group.includes(before)), 0);
    this.showGroup();
  }

  go(step) {
    this.#position = Math.min(Math.max(this.#position + step, 0), this.groups.length - 1);
    this.showGroup();
  }

  goTo(id) {
    const position = this.groups.findIndex((group) => group.includes(id));
    if (position >= 0) this.go(position - this.#position);
  }

  /** After a judgement: the next prompt that has none yet, with the focus on its first picture. */
  advance() {
    const open = (group) => !this.isDone(group);
    const after = this.groups.findIndex((group, index) => index > this.#position && open(group));
    const target = after >= 0 ? after : this.groups.findIndex(open);
    if (target < 0) return this.showGroup();
    const hadFocus = this.grid.element.contains(document.activeElement);
    this.go(target - this.#position);
    if (hadFocus) this.grid.focus(this.group[0]);
  }

  showGroup() {
    const { group } = this;
    this.element.classList.toggle("fl-no-group", !group);
    this.grid.show(group ?? []);
    this.prompt.textContent = group ? promptOf(group[0]) : "";
    this.where.textContent = group ? `Prompt ${this.#position + 1} of ${this.groups.length}` : "";
    this.previous.disabled = this.#position === 0;
    this.next.disabled = this.#position >= this.groups.length - 1;
    for (const id of group ?? []) this.grid.showChange(id);
    this.showHint();
  }

  showChange(id) {
    if (!this.group?.includes(id)) return;
    for (const shown of this.group) this.grid.showChange(shown);
    this.showHint();
  }

  focus(id) {
    this.grid.focus(id);
  }

  remove() {
    this.grid.remove();
  }
}

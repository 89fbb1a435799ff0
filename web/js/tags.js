// Tags on a picture: those of the settings to click, and the user's own to type, which join the settings.
import { element } from "./dom.js";
import { isMine, marks } from "./marks.js";
import { complain, ownTags, rememberTag } from "./settings.js";

const MAX_NAME = 200;

export class Tags {
  constructor() {
    this.chips = element("div", { className: "fl-chips", role: "group", "aria-label": "Tags" });
    const field = { placeholder: "Your own tag", "aria-label": "Your own tag", maxlength: MAX_NAME, autocomplete: "off" };
    const on = { keydown: (event) => event.key === "Enter" && this.#addOwn() };
    this.input = element("input", { className: "fl-aside-field", type: "text", ...field, on });
    const add = element("button", { className: "fl-button", type: "button", text: "Add", on: { click: () => this.#addOwn() } });
    const row = element("div", { className: "fl-aside-row" }, this.input, add);
    this.element = element("section", { className: "fl-section" }, element("h3", { text: "Tags" }), this.chips, row);
  }

  show(id) {
    this.id = id;
    const given = marks.of(id).tags;
    const names = new Set([...ownTags(), ...given.map(({ tag }) => tag)]);
    const focused = this.chips.contains(document.activeElement) && document.activeElement.dataset.tag;
    this.chips.replaceChildren(...[...names].map((name) => this.#chip(name, given.filter(({ tag }) => tag === name))));
    if (focused) [...this.chips.children].find((chip) => chip.dataset.tag === focused)?.focus();
  }

  #chip(name, given) {
    const others = given.filter((tag) => !isMine(tag)).map(({ rater }) => rater);
    const title = others.length ? `Also given by ${others.join(", ")}` : `Tag this picture “${name}”`;
    const chip = element("button", { className: "fl-chip", type: "button", text: name, title, on: { click: () => this.toggle(name) } });
    chip.dataset.tag = name;
    chip.setAttribute("aria-pressed", given.some(isMine));
    return chip;
  }

  async toggle(name) {
    const mine = marks.of(this.id).tags.find((tag) => tag.tag === name && isMine(tag));
    try {
      if (mine) await marks.remove("tags", mine, `without the tag “${name}”`);
      else await marks.add(this.id, "tags", { tag: name }, `tag “${name}”`);
    } catch (error) {
      complain("The tag was not stored", error);
    }
  }

  #addOwn() {
    const name = this.input.value.trim();
    if (!name) return;
    this.input.value = "";
    rememberTag(name);
    if (!marks.of(this.id).tags.some((tag) => tag.tag === name && isMine(tag))) this.toggle(name);
  }
}

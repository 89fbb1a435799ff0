// What a mark on a picture says, how it is made, and the list of those that are there.
import { Choices } from "./choices.js";
import { element } from "./dom.js";
import { isMine, marks } from "./marks.js";
import { complain } from "./settings.js";

export const LABELS = [
  { value: "artifact", text: "artifact", title: "Something that should not be there", colour: "#e5484d" },
  { value: "misaligned", text: "misaligned", title: "Not what the prompt says", colour: "#b46df0" },
  { value: "watermark", text: "watermark", title: "Text, a logo or a watermark", colour: "#3b9eff" },
  { value: "good", text: "good", title: "This part is good", colour: "#30a46c" },
];
const TOOLS = [
  { value: "shape", text: "Point, box", title: "Click marks a point, dragging marks a box" },
  { value: "brush", text: "Brush", title: "Paint over what you mean" },
];
const SHAPES = { point: "point", rect: "box", polygon: "outline", mask: "painted" };
const HINTS = {
  shape: "Click: a point. Drag: a box. Keys on the picture: arrows, Enter; Shift+Enter at two corners.",
  brush: "Paint with the pointer. Keys on the picture: Enter, arrows, Enter.",
};
const UNKNOWN = "#f5a524";

export const colourOf = (label) => LABELS.find(({ value }) => value === label)?.colour ?? UNKNOWN;

export class Regions {
  constructor() {
    this.labels = new Choices("What the mark says", LABELS, () => {});
    this.labels.show("artifact");
    this.tools = new Choices("How to mark", TOOLS, () => this.#showTool());
    this.tools.show("shape");
    const range = { type: "range", min: 1, max: 25, value: 8, title: "Width of the brush", "aria-label": "Width of the brush" };
    this.width = element("input", { className: "fl-range", ...range });
    this.hint = element("p", { className: "fl-hint" });
    this.list = element("ol", { className: "fl-mark-list", "aria-label": "Marks on this picture" });
    const tools = element("div", { className: "fl-aside-row" }, this.tools.element, this.width);
    const title = element("h3", { text: "Marks on the picture" });
    this.element = element("section", { className: "fl-section" }, title, this.labels.element, tools, this.hint, this.list);
    this.#showTool();
  }

  get label() {
    return this.labels.value;
  }

  get tool() {
    return this.tools.value;
  }

  get thickness() {
    return Number(this.width.value) / 100;
  }

  #showTool() {
    this.width.hidden = this.tool !== "brush";
    this.hint.textContent = HINTS[this.tool];
  }

  show(id) {
    this.list.replaceChildren(...marks.of(id).regions.map((region) => this.#item(region)));
  }

  #item(region) {
    const { label, shape, comment } = region;
    const words = [label, SHAPES[shape], !isMine(region) && `by ${region.rater}`, comment].filter(Boolean).join(", ");
    const item = element("li", {}, element("span", { className: "fl-mark-words", text: words }));
    item.style.setProperty("--fl-mark", colourOf(label));
    if (isMine(region)) item.append(this.#removeButton(region, words));
    return item;
  }

  #removeButton(region, words) {
    const click = async () => {
      try {
        await marks.remove("regions", region, `without mark: ${words}`);
      } catch (error) {
        complain("The mark was not taken back", error);
      }
    };
    const attributes = { type: "button", title: "Take this mark back", "aria-label": `Take back: ${words}`, text: "×" };
    return element("button", { className: "fl-remove", ...attributes, on: { click } });
  }
}

// The picture in the large view with its marks, and the gestures that make new ones: a click marks a point, dragging a
// box, the brush paints. Arrow keys move a cross that does the same.
import { MaskLayer } from "./brush.js";
import { drawing, element } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { marks } from "./marks.js";
import { isPixelArt } from "./picture_card.js";
import { pictures } from "./pictures.js";
import { colourOf } from "./regions.js";
import { complain } from "./settings.js";

const CLICK_IS_WITHIN = 5; // CSS pixels: less is no dragging
const STEP = 0.02;
const BIG_STEP = 0.1;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LABEL = "Picture. Arrow keys move a cross, Enter marks there, Shift and Enter at two corners marks a box.";

const clamp = (number) => Math.min(Math.max(number, 0), 1);
const pair = ({ x, y }) => [Number(x.toFixed(4)), Number(y.toFixed(4))];
const inOrder = (one, other) => [
  { x: Math.min(one.x, other.x), y: Math.min(one.y, other.y) },
  { x: Math.max(one.x, other.x), y: Math.max(one.y, other.y) },
];

export class PictureStage {
  #start = null; // where the pointer went down, or the first corner was set
  #cross = { x: 0.5, y: 0.5 };

  /** @param tools {label, tool, thickness} */
  constructor(tools) {
    this.tools = tools;
    this.image = element("img", { className: "fl-full-image", draggable: "false" });
    this.masks = new MaskLayer();
    this.shapes = drawing("svg", { class: "fl-shapes", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.numbers = element("div", { className: "fl-numbers", "aria-hidden": "true" });
    this.cross = element("div", { className: "fl-cross", "aria-hidden": "true" });
    const on = {
      pointerdown: (event) => this.#down(event),
      pointermove: (event) => this.#move(event),
      pointerup: (event) => this.#up(event),
      pointercancel: () => this.#cancel(),
      keydown: (event) => this.#key(event),
    };
    const attributes = { className: "fl-stage", tabindex: 0, role: "group", "aria-label": LABEL, on };
    this.stage = element("div", attributes, this.image, this.masks.element, this.shapes, this.numbers, this.cross);
    this.element = element("div", { className: "fl-stage-room" }, this.stage);
  }

  show(id) {
    const picture = pictures.get(id);
    if (id !== this.id) this.#cancel();
    this.id = id;
    this.image.src = pictureUrl(id);
    this.image.alt = picture.prompt ?? "Captured picture";
    this.image.classList.toggle("fl-pixels", isPixelArt(picture));
    this.stage.style.setProperty("--fl-ratio", picture.width / picture.height);
    this.showMarks();
  }

  showMarks() {
    const { width, height } = pictures.get(this.id);
    const { regions } = marks.of(this.id);
    const painted = regions.filter(({ mask }) => mask).map(({ mask, label }) => ({ mask, colour: colourOf(label) }));
    this.masks.show(painted, width, height).catch((error) => complain("A painted mark can't be shown", error));
    this.shapes.replaceChildren(...regions.filter(({ shape }) => shape === "rect" || shape === "polygon").map(outline));
    this.numbers.replaceChildren(...regions.map((region, index) => number(region, index + 1)).filter(Boolean));
  }

  #at(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
  }

  #down(event) {
    if (event.button !== 0) return;
    this.stage.setPointerCapture(event.pointerId);
    this.#start = { ...this.#at(event), clientX: event.clientX, clientY: event.clientY };
    if (this.tools.tool === "brush") this.masks.begin(this.#start, colourOf(this.tools.label), this.tools.thickness);
  }

  #move(event) {
    if (!this.#start || !this.stage.hasPointerCapture(event.pointerId)) return;
    if (this.masks.stroke) this.masks.paintTo(this.#at(event));
    else this.#preview(this.#at(event));
  }

  async #up(event) {
    const start = this.#start;
    if (!start || !this.stage.hasPointerCapture(event.pointerId)) return;
    const end = this.#at(event);
    const dragged = Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) > CLICK_IS_WITHIN;
    if (this.masks.stroke) await this.#storeStroke();
    else if (dragged) this.#store("rect", inOrder(start, end));
    else this.#store("point", [end]);
  }

  #cancel() {
    this.#start = null;
    this.masks.stroke = null;
    this.preview?.remove();
    if (this.id) this.showMarks();
  }

  #preview(end) {
    const region = { shape: "rect", geometry: inOrder(this.#start, end).map(pair), label: this.tools.label };
    this.preview?.remove();
    this.preview = outline(region);
    this.shapes.append(this.preview);
  }

  async #storeStroke() {
    this.#start = null;
    const { id } = this;
    const mask = await this.masks.end();
    await this.#store("mask", [], { mask }, id);
  }

  async #store(shape, points, more = {}, id = this.id) {
    this.#start = null;
    this.preview?.remove();
    const { label } = this.tools;
    try {
      await marks.add(id, "regions", { shape, geometry: points.map(pair), label, ...more }, `mark “${label}”`);
    } catch (error) {
      complain("The mark was not stored", error);
    }
  }

  #key(event) {
    if (ARROWS[event.key]) this.#moveCross(ARROWS[event.key], event.shiftKey ? BIG_STEP : STEP);
    else if (event.key === "Enter") this.#markAtCross(event.shiftKey);
    else if (event.key === "Escape" && this.#start) this.#cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #moveCross([dx, dy], step) {
    this.#cross = { x: clamp(this.#cross.x + dx * step), y: clamp(this.#cross.y + dy * step) };
    this.cross.style.left = `${this.#cross.x * 100}%`;
    this.cross.style.top = `${this.#cross.y * 100}%`;
    if (this.masks.stroke) this.masks.paintTo(this.#cross);
    else if (this.#start) this.#preview(this.#cross);
  }

  #markAtCross(corner) {
    const at = this.#cross;
    if (this.masks.stroke) return this.#storeStroke();
    if (this.tools.tool === "brush") {
      this.#start = at;
      return this.masks.begin(at, colourOf(this.tools.label), this.tools.thickness);
    }
    if (this.#start) return this.#store("rect", inOrder(this.#start, at));
    if (!corner) return this.#store("point", [at]);
    this.#start = at;
    this.#preview(at);
  }
}

function outline({ shape, geometry, label }) {
  const [[left, top], [right, bottom] = []] = geometry;
  const corners = shape === "rect" ? [[left, top], [right, top], [right, bottom], [left, bottom]] : geometry;
  const polygon = drawing("polygon", { points: corners.map((corner) => corner.join(",")).join(" ") });
  polygon.style.setProperty("--fl-mark", colourOf(label));
  return polygon;
}

/** The mark's number in the list, where it begins; a painted mark is seen without. */
function number({ shape, geometry, label }, position) {
  if (!geometry.length) return null;
  const [x, y] = geometry[0];
  const node = element("span", { className: `fl-number fl-number-${shape}`, text: String(position), title: label });
  Object.assign(node.style, { left: `${x * 100}%`, top: `${y * 100}%` });
  node.style.setProperty("--fl-mark", colourOf(label));
  return node;
}

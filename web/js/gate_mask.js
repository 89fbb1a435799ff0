// Painting over a part of a picture, with the pointer or with the keys: the mask that a run goes on with.
import { element } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { base64, greyPng } from "./grey_png.js";
import { isPixelArt } from "./picture_card.js";
import { pictures } from "./pictures.js";

const INK = "#e5484d";
const STEP = 0.02;
const BIG_STEP = 0.1;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LABEL = "Picture to paint on. Arrow keys move the brush, Enter lowers and raises it.";

const clamp = (number) => Math.min(Math.max(number, 0), 1);

export class MaskPainter {
  #last = null; // where the brush is on the picture; null while it is raised
  #cross = { x: 0.5, y: 0.5 };

  constructor(id) {
    const picture = pictures.get(id);
    this.id = id;
    this.image = element("img", { className: "fl-full-image", draggable: "false", src: pictureUrl(id), alt: "" });
    this.image.classList.toggle("fl-pixels", isPixelArt(picture));
    this.canvas = element("canvas", { className: "fl-masks fl-gate-paint", width: picture.width, height: picture.height });
    this.context = this.canvas.getContext("2d");
    this.cross = element("div", { className: "fl-cross", "aria-hidden": "true" });
    const range = { type: "range", min: 1, max: 40, value: 12, title: "Width of the brush", "aria-label": "Width of the brush" };
    this.width = element("input", { className: "fl-range", ...range });
    const on = {
      pointerdown: (event) => this.#down(event),
      pointermove: (event) => this.#move(event),
      pointerup: () => (this.#last = null),
      pointercancel: () => (this.#last = null),
      keydown: (event) => this.#key(event),
    };
    const attributes = { className: "fl-stage", tabindex: 0, role: "group", "aria-label": LABEL, on };
    this.stage = element("div", attributes, this.image, this.canvas, this.cross);
    this.stage.style.setProperty("--fl-ratio", picture.width / picture.height);
    const hint = element("p", { className: "fl-hint", text: "Paint with the pointer. Keys: arrows, Enter lowers the brush." });
    const tools = element("div", { className: "fl-aside-row" }, hint, this.width);
    this.element = element("div", { className: "fl-gate-mask" }, element("div", { className: "fl-stage-room" }, this.stage), tools);
  }

  focus() {
    this.stage.focus();
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** The painted part as a grey PNG in base64, or null where nothing is painted. */
  async mask() {
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    const grey = Uint8Array.from({ length: width * height }, (_, at) => (data[at * 4 + 3] > 127 ? 255 : 0));
    return grey.some(Boolean) ? base64(await greyPng(grey, width, height)) : null;
  }

  #at(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
  }

  #down(event) {
    if (event.button !== 0) return;
    this.stage.setPointerCapture(event.pointerId);
    this.#last = this.#at(event);
    this.#paintTo(this.#last);
  }

  #move(event) {
    if (this.#last && this.stage.hasPointerCapture(event.pointerId)) this.#paintTo(this.#at(event));
  }

  #paintTo(point) {
    const { width, height } = this.canvas;
    const lineWidth = Math.max((Number(this.width.value) / 100) * width, 1);
    Object.assign(this.context, { strokeStyle: INK, lineCap: "round", lineJoin: "round", lineWidth });
    this.context.beginPath();
    this.context.moveTo(this.#last.x * width, this.#last.y * height);
    // A line to where it begins draws nothing; a dot needs some length.
    this.context.lineTo(point.x * width + 0.01, point.y * height);
    this.context.stroke();
    this.#last = point;
  }

  #key(event) {
    if (ARROWS[event.key]) this.#moveCross(ARROWS[event.key], event.shiftKey ? BIG_STEP : STEP);
    else if (event.key === "Enter" || event.key === " ") this.#lowerOrRaise();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #moveCross([dx, dy], step) {
    this.#cross = { x: clamp(this.#cross.x + dx * step), y: clamp(this.#cross.y + dy * step) };
    this.cross.style.left = `${this.#cross.x * 100}%`;
    this.cross.style.top = `${this.#cross.y * 100}%`;
    if (this.#last) this.#paintTo(this.#cross);
  }

  #lowerOrRaise() {
    this.#last = this.#last ? null : { ...this.#cross };
    if (this.#last) this.#paintTo(this.#last);
  }
}

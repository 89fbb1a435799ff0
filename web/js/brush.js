// Masks on a picture: a canvas of the picture's size that shows those that are stored and the stroke being painted.
import { base64, greyPng } from "./grey_png.js";

const SEEN_THROUGH = 0.55;

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

/** A grey picture as a colour that is opaque where the picture is white. */
async function tinted(mask, colour, width, height) {
  const image = new Image();
  image.src = `data:image/png;base64,${mask}`;
  await image.decode();
  const context = canvasOf(width, height).getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
  context.putImageData(pixels, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  return context.canvas;
}

export class MaskLayer {
  #shown = 0;

  constructor() {
    this.element = canvasOf(1, 1);
    this.element.className = "fl-masks";
    this.element.setAttribute("aria-hidden", "true");
  }

  get #size() {
    return [this.element.width, this.element.height];
  }

  /** @param masks [{mask: base64 PNG, colour}] */
  async show(masks, width, height) {
    const turn = ++this.#shown;
    const layers = await Promise.all(masks.map(({ mask, colour }) => tinted(mask, colour, width, height)));
    if (turn !== this.#shown) return; // Another picture, or another mark, came meanwhile.
    Object.assign(this.element, { width, height });
    const context = this.element.getContext("2d");
    context.globalAlpha = SEEN_THROUGH;
    for (const layer of layers) context.drawImage(layer, 0, 0);
  }

  /** @param thickness as a fraction of the picture's width; points are fractions too */
  begin(point, colour, thickness) {
    const [width, height] = this.#size;
    this.stroke = canvasOf(width, height).getContext("2d");
    this.stroke.fillRect(0, 0, width, height);
    const live = this.element.getContext("2d");
    live.globalAlpha = SEEN_THROUGH;
    for (const [context, ink] of [[this.stroke, "white"], [live, colour]]) {
      Object.assign(context, { strokeStyle: ink, lineCap: "round", lineJoin: "round", lineWidth: Math.max(thickness * width, 1) });
    }
    this.last = point;
    this.paintTo(point);
  }

  paintTo(point) {
    const [width, height] = this.#size;
    for (const context of [this.stroke, this.element.getContext("2d")]) {
      context.beginPath();
      context.moveTo(this.last.x * width, this.last.y * height);
      // A line to where it begins draws nothing; a dot needs some length.
      context.lineTo(point.x * width + 0.01, point.y * height);
      context.stroke();
    }
    this.last = point;
  }

  /** The stroke as a grey PNG in base64. */
  async end() {
    const [width, height] = this.#size;
    const { data } = this.stroke.getImageData(0, 0, width, height);
    this.stroke = null;
    const grey = new Uint8Array(width * height);
    for (let at = 0; at < grey.length; at += 1) grey[at] = data[at * 4];
    return base64(await greyPng(grey, width, height));
  }
}

// The curve of a reward over the steered part of a run: its mean over the batch, in a band from the lowest to the highest.
import { drawing, element, plural } from "./dom.js";

const [WIDTH, HEIGHT, EDGE] = [240, 90, 4];

const rounded = (value) => Number(value).toPrecision(3);

/** Points of the drawing for values over shares of the run. */
function placed(shares, values, [low, high]) {
  const across = (share) => EDGE + ((share - shares[0]) / (shares.at(-1) - shares[0] || 1)) * (WIDTH - 2 * EDGE);
  const up = (value) => HEIGHT - EDGE - ((value - low) / (high - low || 1)) * (HEIGHT - 2 * EDGE);
  return values.map((value, index) => `${across(shares[index]).toFixed(1)},${up(value).toFixed(1)}`);
}

function plot(curve) {
  const shares = curve.map(([share]) => share);
  const [lows, means, highs] = [1, 2, 3].map((column) => curve.map((row) => row[column]));
  const range = [Math.min(...lows), Math.max(...highs)];
  const band = [...placed(shares, highs, range), ...placed(shares, lows, range).reverse()].join(" ");
  return drawing(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": inWords(curve) },
    drawing("polygon", { points: band, class: "fl-band" }),
    drawing("polyline", { points: placed(shares, means, range).join(" "), class: "fl-mean" }),
  );
}

function inWords(curve) {
  const [first, last] = [curve[0], curve.at(-1)];
  return `Reward ${rounded(first[2])} at first, ${rounded(last[2])} after ${plural(curve.length, "steered step")}`;
}

export class GuidanceView {
  constructor() {
    this.said = element("p", { className: "fl-said", text: "The reward of each step appears here while a run goes on." });
    this.picture = element("img", { alt: "The clean picture that the model expects at this step", hidden: "" });
    this.curve = element("div", { className: "fl-curve" });
    this.problems = element("ul", { className: "fl-problems", role: "status" });
    const seen = element("div", { className: "fl-seen" }, this.picture, this.curve);
    this.element = element("div", { className: "fl-guidance" }, seen, this.said, this.problems);
  }

  /** @param told {curve: [[share of the run, lowest, mean, highest]], problems: [sentence], done, preview?: base64 of a JPEG} */
  show({ curve, problems, preview }) {
    if (preview) {
      this.picture.src = `data:image/jpeg;base64,${preview}`;
      this.picture.hidden = false;
    }
    if (curve.length) {
      this.curve.replaceChildren(plot(curve));
      this.said.textContent = `${inWords(curve)}.`;
    }
    this.problems.replaceChildren(...problems.map((text) => element("li", { text })));
  }

  remove() {}
}

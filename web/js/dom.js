// Building elements without markup strings: text that came from a prompt or a rater can only ever become text.
const SVG = "http://www.w3.org/2000/svg";
const STAR_PATH =
  "M12 2.6l2.83 5.9 6.47.83-4.75 4.5 1.2 6.42L12 17.1l-5.75 3.15 1.2-6.42-4.75-4.5 6.47-.83z";

export function element(tag, { className, text, on = {}, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children);
  return node;
}

/** An SVG element; drawings are made of attributes only. */
export function drawing(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const icon = (d) => drawing("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, drawing("path", { d }));

export const starIcon = () => icon(STAR_PATH);

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
export const starsInWords = (count) => (count ? plural(count, "star") : "not rated");

/** Seconds since a `performance.now()`, to the hundredth. */
export const secondsSince = (start) => Math.round((performance.now() - start) / 10) / 100;

// Thumb down and thumb up: a rating on a scale of two. Pressing the one that was given clears it.
import { element, icon } from "./dom.js";

const THUMB = "M7 21H4V10h3m0 11V10l4-8c1.7 0 2.8 1.1 2.8 2.8V9h4.9c1.4 0 2.4 1.3 2.1 2.6l-1.7 7.6c-.2 1-1.1 1.8-2.2 1.8z";
export const THUMBS = [
  { value: -1, label: "thumb down", key: 1 },
  { value: 1, label: "thumb up", key: 2 },
];

/** @param onRate called with -1 or 1; the caller decides that the same again clears. */
export class Thumbs {
  constructor(onRate) {
    this.buttons = THUMBS.map((thumb) => this.#button(thumb, onRate));
    this.element = element("div", { className: "fl-thumbs", role: "group", "aria-label": "Thumbs" }, ...this.buttons);
  }

  #button({ value, label, key }, onRate) {
    const click = () => onRate(value);
    const title = `${label} (${key})`;
    const attributes = { type: "button", title, "aria-label": label, "data-thumb": value, on: { click } };
    return element("button", { className: "fl-thumb-button", ...attributes }, icon(THUMB));
  }

  show(thumb) {
    for (const button of this.buttons) button.setAttribute("aria-pressed", Number(button.dataset.thumb) === thumb);
  }

  setReachable(reachable) {
    for (const button of this.buttons) button.tabIndex = reachable ? 0 : -1;
  }
}

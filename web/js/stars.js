// Five stars as a radio group: click one to rate, click it again to clear.
import { element, starIcon, starsInWords } from "./dom.js";

export const MAX_STARS = 5;

/** @param onRate called with 1..5; the caller decides that the same number again clears. */
export class Stars {
  constructor(onRate) {
    this.buttons = Array.from({ length: MAX_STARS }, (_, index) => this.#button(index + 1, onRate));
    this.element = element(
      "div",
      { className: "fl-stars", role: "radiogroup", "aria-label": "Stars", on: { keydown: (event) => this.#move(event) } },
      ...this.buttons,
    );
  }

  #button(stars, onRate) {
    const label = starsInWords(stars);
    return element(
      "button",
      {
        className: "fl-star",
        type: "button",
        role: "radio",
        "aria-label": label,
        "data-stars": stars,
        tabindex: -1,
        on: { click: () => onRate(stars) },
      },
      starIcon(),
    );
  }

  show(stars) {
    this.element.classList.toggle("fl-rated", Boolean(stars));
    for (const [index, button] of this.buttons.entries()) {
      button.classList.toggle("fl-lit", index < stars);
      button.setAttribute("aria-checked", index + 1 === stars);
    }
    this.stars = stars;
  }

  /** Only the card that has the roving focus puts its stars into the Tab order. */
  setReachable(reachable) {
    const entry = (this.stars || 1) - 1;
    for (const [index, button] of this.buttons.entries()) button.tabIndex = reachable && index === entry ? 0 : -1;
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const from = this.buttons.indexOf(document.activeElement);
    if (!step || from < 0) return;
    event.preventDefault();
    event.stopPropagation();
    this.buttons[(from + step + MAX_STARS) % MAX_STARS].focus();
  }
}

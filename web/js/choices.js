// One of a few as a radio group: Tab leads to the chosen one, the arrow keys walk, Enter or Space chooses.
import { element } from "./dom.js";

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export class Choices {
  /** @param options [{value, text, title?, colour?}] */
  constructor(label, options, onChoose) {
    this.buttons = options.map((option) => this.#button(option, onChoose));
    const on = { keydown: (event) => this.#move(event) };
    this.element = element("div", { className: "fl-choices", role: "radiogroup", "aria-label": label, on }, ...this.buttons);
  }

  #button({ value, text, title = text, colour }, onChoose) {
    const click = () => {
      this.show(value);
      onChoose(value);
    };
    const button = element("button", { className: "fl-option", type: "button", role: "radio", text, title, on: { click } });
    button.dataset.value = value;
    if (colour) button.style.setProperty("--fl-mark", colour);
    return button;
  }

  show(value) {
    this.value = value;
    for (const button of this.buttons) {
      const chosen = button.dataset.value === value;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
  }

  #move(event) {
    const from = this.buttons.indexOf(document.activeElement);
    const step = STEPS[event.key];
    if (!step || from < 0) return;
    event.preventDefault();
    event.stopPropagation();
    this.buttons.at((from + step) % this.buttons.length).focus();
  }
}

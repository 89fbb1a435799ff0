// The words of the prompt: one that the picture gets wrong, misses, or shows well can be clicked.
import { Choices } from "./choices.js";
import { element } from "./dom.js";
import { isMine, marks } from "./marks.js";
import { pictures } from "./pictures.js";
import { complain } from "./settings.js";

const LABELS = [
  { value: "misaligned", text: "misaligned", title: "The picture shows this word wrongly", colour: "#b46df0" },
  { value: "missing", text: "missing", title: "The picture does not show this word", colour: "#e5484d" },
  { value: "good", text: "good", title: "The picture shows this word well", colour: "#30a46c" },
];
// What separates words for Python's str.split, which the server counts words by; \s is not quite the same.
const BETWEEN_WORDS = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export const wordsOf = (prompt) => (prompt ?? "").split(BETWEEN_WORDS).filter(Boolean);

export class WordMarks {
  constructor() {
    this.labels = new Choices("What the word is", LABELS, () => {});
    this.labels.show("misaligned");
    const on = { keydown: (event) => this.#walk(event) };
    this.words = element("div", { className: "fl-words", role: "group", "aria-label": "Words of the prompt", on });
    const title = element("h3", { text: "Words of the prompt" });
    this.element = element("section", { className: "fl-section" }, title, this.labels.element, this.words);
  }

  show(id) {
    const words = wordsOf(pictures.get(id).prompt);
    this.element.hidden = !words.length;
    if (id !== this.id) {
      this.words.replaceChildren(...words.map((word, index) => this.#button(word, index)));
      this.reachable = 0;
    }
    this.id = id;
    for (const [index, button] of [...this.words.children].entries()) this.#showWord(button, index);
  }

  #button(word, index) {
    return element("button", { className: "fl-word", type: "button", text: word, on: { click: () => this.#mark(word, index) } });
  }

  #mine(index) {
    return marks.of(this.id).word_marks.find((mark) => mark.word_index === index && isMine(mark));
  }

  #showWord(button, index) {
    const mark = this.#mine(index) ?? marks.of(this.id).word_marks.find((one) => one.word_index === index);
    const label = LABELS.find(({ value }) => value === mark?.label);
    button.style.setProperty("--fl-mark", label?.colour ?? "transparent");
    button.setAttribute("aria-pressed", Boolean(mark));
    button.title = mark ? [mark.label, !isMine(mark) && `by ${mark.rater}`].filter(Boolean).join(", ") : "Click to mark this word";
    button.setAttribute("aria-label", mark ? `${button.textContent}: ${mark.label}` : button.textContent);
    button.dataset.label = mark?.label ?? "";
    button.tabIndex = index === this.reachable ? 0 : -1;
  }

  /** The label that it has already clears it. */
  async #mark(word, index) {
    this.reachable = index;
    const before = this.#mine(index);
    const label = this.labels.value;
    const content = { image_id: this.id, word_index: index, word, label };
    const add = before?.label === label ? [] : [content];
    try {
      const words = add.length ? `“${word}” is ${label}` : `“${word}” unmarked`;
      await marks.change("word_marks", { add, remove: before ? [before] : [] }, words);
    } catch (error) {
      complain("The word was not marked", error);
    }
  }

  #walk(event) {
    const buttons = [...this.words.children];
    const target = buttons[buttons.indexOf(event.target) + (STEPS[event.key] ?? 0)];
    if (!STEPS[event.key] || !target) return;
    this.reachable = buttons.indexOf(target);
    target.focus();
    this.show(this.id);
    event.preventDefault();
    event.stopPropagation();
  }
}

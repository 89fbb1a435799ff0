// What was written about a picture, and a field to write more. Text that was typed is stored when the view goes on to
// another picture or closes, too.
import { element } from "./dom.js";
import { isMine, marks } from "./marks.js";
import { complain } from "./settings.js";

export class Comments {
  constructor() {
    this.list = element("ul", { className: "fl-comments", "aria-label": "Comments" });
    const field = { rows: 2, placeholder: "What is good or bad, in words (t)", "aria-label": "Comment" };
    this.field = element("textarea", { className: "fl-aside-field", ...field, on: { keydown: (event) => this.#key(event) } });
    const title = "Store the comment (Enter; Shift+Enter begins a new line)";
    const keep = element("button", { className: "fl-button", type: "button", text: "Store", title, on: { click: () => this.store() } });
    const row = element("div", { className: "fl-aside-row" }, this.field, keep);
    this.element = element("section", { className: "fl-section" }, element("h3", { text: "Comment" }), this.list, row);
  }

  show(id) {
    if (this.id && id !== this.id) this.store();
    this.id = id;
    this.list.replaceChildren(...marks.of(id).comments.map((comment) => this.#item(comment)));
  }

  #item(comment) {
    const { text, rater } = comment;
    const words = element("span", { text: isMine(comment) ? text : `${rater}: ${text}` });
    const item = element("li", {}, words);
    if (!isMine(comment)) return item;
    const click = () => this.#remove(comment);
    const title = "Take this comment back";
    item.append(element("button", { className: "fl-remove", type: "button", text: "×", title, "aria-label": title, on: { click } }));
    return item;
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.store();
  }

  async store() {
    const text = this.field.value.trim();
    if (!text) return;
    const { id } = this;
    this.field.value = "";
    try {
      await marks.add(id, "comments", { text }, "comment");
    } catch (error) {
      if (this.id === id && !this.field.value) this.field.value = text;
      complain("The comment was not stored", error);
    }
  }

  async #remove(comment) {
    try {
      await marks.remove("comments", comment, "comment taken back");
    } catch (error) {
      complain("The comment was not taken back", error);
    }
  }

  focus() {
    this.field.focus();
  }
}

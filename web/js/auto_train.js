// The versions of a LoRA that is trained by itself, in its node: which is in use, what became of each, and back by one click.
import { app } from "../../../scripts/app.js";
import { element, plural } from "./dom.js";
import { answerOf, BASE, write } from "./feedback_api.js";
import { keepNativeKeys, takeKeys } from "./keys.js";
import { addView, after } from "./node_view.js";
import { complain } from "./settings.js";
import { send } from "./team.js";

const NODE = "FeedbackAutoTrain";
const VIEW = { name: "versions", type: "feedback_versions", size: [420, 900], minHeight: 120 };
const NOTHING = "No LoRA was trained under this name yet.";
const NOT_FOUND = 404;

const stylesheet = new URL("./auto_train.css", import.meta.url).href;
document.head.append(element("link", { rel: "stylesheet", href: stylesheet }));

const place = (name) => `/auto_train/${encodeURIComponent(name)}`;

/** How things stand under a name, or null where nothing was trained. */
async function fetchState(name) {
  const response = await send(BASE + place(name));
  return response.status === NOT_FOUND ? null : answerOf(response);
}

const underWay = ({ stage, candidate, votes }) =>
  stage === "training" ? "A training is under way." : `Version ${candidate} is being compared: ${plural(votes, "vote")} so far.`;

const inWords = ({ number, file, ratings, outcome, why }) =>
  `${number} · ${file} · ${plural(ratings, "rating")} · ${outcome}${why ? `: ${why}` : ""}`;

export class VersionsView {
  #turn = 0;

  /** @param name gives the name that the versions belong to */
  constructor(name) {
    this.name = name;
    this.status = element("p", { className: "fl-count", role: "status", text: NOTHING });
    this.list = element("ol", { "aria-label": "Versions, the latest first" });
    const back = "Take the version before into use again";
    this.backButton = this.#button("Back", back, () => this.back(), element("kbd", { text: "b" }));
    this.dropButton = this.#button("Drop", "End what is under way; what is in use stays", () => this.#drop());
    const bar = element("div", { className: "fl-bar" }, this.backButton, this.dropButton);
    const on = { keydown: keepNativeKeys, focusin: () => takeKeys(this.element, () => {}, { back: () => this.back() }) };
    const attributes = { role: "group", "aria-label": "Versions of the LoRA", tabindex: 0, on };
    this.element = element("div", { className: "fl-auto", ...attributes }, bar, this.status, this.list);
    this.#show(null);
  }

  #button(text, title, click, ...before) {
    return element("button", { className: "fl-button", type: "button", title, on: { click } }, ...before, text);
  }

  async refresh() {
    const turn = ++this.#turn;
    try {
      const state = this.name() ? await fetchState(this.name()) : null;
      if (turn === this.#turn) this.#show(state);
    } catch (error) {
      complain("The versions could not be read", error);
    }
  }

  async #change(what, body) {
    const turn = ++this.#turn;
    try {
      const state = await write("POST", `${place(this.name())}/${what}`, body);
      if (turn === this.#turn) this.#show(state);
    } catch (error) {
      complain("The versions could not be changed", error);
      await this.refresh();
    }
  }

  async back() {
    // Naming the version, so that the request may be sent twice.
    if (this.state?.back !== null && this.state?.back !== undefined) await this.#change("use", { version: this.state.back });
  }

  async #drop() {
    await this.#change("drop", {});
  }

  #show(state) {
    this.state = state;
    this.backButton.disabled = (state?.back ?? null) === null;
    this.dropButton.hidden = !state?.round;
    const used = state?.in_use ? `Version ${state.in_use} is in use.` : "The model is in use without a LoRA.";
    this.status.textContent = state ? [used, state.round ? underWay(state.round) : ""].join(" ").trim() : NOTHING;
    const plain = { number: 0, text: "0 · the model without a LoRA" };
    const rows = state ? [...state.versions.map((one) => ({ number: one.number, text: inWords(one) })).reverse(), plain] : [];
    this.list.replaceChildren(...rows.map((row) => this.#row(row, state.in_use)));
  }

  #row({ number, text }, used) {
    const use = this.#button("Use", `Take version ${number} into use`, () => this.#change("use", { version: number }));
    const row = element("li", {}, element("span", { text }), number === used ? element("strong", { text: "in use" }) : use);
    row.dataset.version = number;
    if (number === used) row.setAttribute("aria-current", "true");
    return row;
  }

  remove() {}
}

app.registerExtension({
  name: "FeedbackLoop.AutoTrain",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const named = node.widgets.find((widget) => widget.name === "name");
    const view = new VersionsView(() => String(named.value).trim());
    addView(node, view, VIEW);
    after(named, "callback", () => view.refresh());
    after(node, "onExecuted", () => view.refresh());
    after(node, "onConfigure", () => view.refresh());
    view.refresh();
  },
});

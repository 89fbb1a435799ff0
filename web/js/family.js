// A picture's family: what it came from, what was said each time, what came out, and which one was taken. Every picture in
// it can be opened, taken as the good one of its round, or put into the graph to go on from there.
import { element, plural } from "./dom.js";
import { commentOn, sayInGraph } from "./family_comment.js";
import { answerOf, BASE, thumbnailUrl, write } from "./feedback_api.js";
import { keepNativeKeys } from "./keys.js";
import { complain, currentRater } from "./settings.js";
import { useInGraph } from "./sidebar_use.js";
import { send } from "./team.js";

const stylesheet = new URL("./family.css", import.meta.url).href;
document.head.append(element("link", { rel: "stylesheet", href: stylesheet }));

const HOW = { said: "chosen", "went on": "gone on with", best: "best by its reward" };
const HINT =
  "Arrows walk · Enter takes the picture as the good one of its round · g puts it into the graph · " +
  "c carries its comment to the next round · Escape closes";
const CARRY = "Write what was said of the chosen picture into the comment of the graph's nodes, for the next round (c)";

export const fetchFamily = async (id) => answerOf(await send(`${BASE}/images/${encodeURIComponent(id)}/family`));

const choose = (round, id) =>
  write("POST", `/rounds/${encodeURIComponent(round)}/choice`, { image_id: id, rater: currentRater() });

/** Opens over the page on the family of a picture; the picture itself has the focus. */
export async function openFamily(id) {
  try {
    const view = new FamilyView(await fetchFamily(id), id);
    document.body.append(view.element);
    view.element.showModal();
    view.focus(id);
    return view;
  } catch (error) {
    complain("The rounds of this picture could not be read", error);
    return null;
  }
}

class FamilyView {
  constructor(family, id) {
    this.id = id;
    this.tree = element("div", { className: "fl-family-tree", role: "tree", "aria-label": "Rounds of this picture" });
    this.status = element("span", { className: "fl-full-status", role: "status" });
    const close = { className: "fl-button fl-close", type: "button", text: "Close", title: "Close (Escape)" };
    const carry = { className: "fl-button", type: "button", text: "Carry its comment on", title: CARRY };
    const head = element(
      "div",
      { className: "fl-bar" },
      element("h2", { className: "fl-gate-heading", text: "Rounds" }),
      element("button", { ...carry, on: { click: () => this.#carry(this.#current) } }),
      element("button", { ...close, on: { click: () => this.element.close() } }),
    );
    const hint = element("p", { className: "fl-hint", text: HINT }, this.status);
    const on = { keydown: (event) => this.#key(event), close: () => this.element.remove() };
    this.element = element("dialog", { className: "fl-full fl-family", "aria-label": "Rounds of a picture", on }, head, this.tree, hint);
    this.element.addEventListener("click", (event) => event.target === this.element && this.element.close());
    this.#show(family);
  }

  /** A picture that came out of several rounds is drawn where it came out first; circles end there. */
  #show({ root, rounds }) {
    this.rounds = rounds;
    const drawn = new Set();
    const branch = (id, round) => {
      const first = !drawn.has(id);
      drawn.add(id);
      const below = first ? rounds.filter((one) => one.parent === id) : [];
      return element("div", { className: "fl-family-branch" }, this.#picture(id, round), ...below.map(roundOf));
    };
    const roundOf = (round) => {
      const said = round.comment || round.labels.join(", ") || "made anew";
      const words = element("p", { className: "fl-family-said", text: `“${said}” · ${plural(round.candidates.length, "candidate")}` });
      const made = round.candidates.map(({ image_id }) => branch(image_id, round));
      return element("div", { className: "fl-family-round", role: "group", "aria-label": said }, words, ...made);
    };
    this.tree.replaceChildren(branch(root, null));
    if (!rounds.length) this.tree.append(element("p", { className: "fl-hint", text: "Nothing was refined from this picture yet." }));
  }

  #picture(id, round) {
    const accepted = round?.decided && round.accepted === id;
    const label = accepted ? HOW[round.how] : round ? "candidate" : "first picture";
    const image = element("img", { className: "fl-thumb", src: thumbnailUrl(id), alt: "", draggable: "false" });
    const options = { className: "fl-family-picture", role: "treeitem", tabindex: id === this.id ? 0 : -1, title: HINT };
    const node = element("div", { ...options, "aria-label": label, on: { click: () => this.focus(id) } }, image, element("span", { text: label }));
    node.dataset.imageId = id;
    if (round) node.dataset.round = round.id;
    node.classList.toggle("fl-accepted", Boolean(accepted));
    node.setAttribute("aria-selected", Boolean(accepted));
    return node;
  }

  get #nodes() {
    return [...this.tree.querySelectorAll(".fl-family-picture")];
  }

  /** The picture that the keys are about, also while a button has the focus. */
  get #current() {
    return this.#nodes.find((one) => one.tabIndex === 0) ?? this.#nodes[0];
  }

  focus(id) {
    const node = this.#nodes.find((one) => one.dataset.imageId === id) ?? this.#nodes[0];
    for (const one of this.#nodes) one.tabIndex = one === node ? 0 : -1;
    node.focus();
  }

  #walk(step) {
    const nodes = this.#nodes;
    const next = nodes[nodes.indexOf(document.activeElement) + step];
    if (next) this.focus(next.dataset.imageId);
  }

  async #take(node) {
    if (!node.dataset.round) return;
    try {
      await choose(node.dataset.round, node.dataset.imageId);
      this.#show(await fetchFamily(this.id));
      this.focus(node.dataset.imageId);
      this.status.textContent = "Taken as the good one of its round";
    } catch (error) {
      complain("The choice could not be stored", error);
    }
  }

  async #carry(node) {
    try {
      const text = await commentOn(node.dataset.imageId);
      if (!text) {
        this.status.textContent = "Nothing was written about this picture yet: open it large and press t";
        return;
      }
      const nodes = sayInGraph(text);
      const where = nodes.map(({ title }) => title).join(", ");
      this.status.textContent = nodes.length
        ? `“${text}” is now the comment of: ${where}`
        : "No node of the open graph takes a comment: add Say what to change, or Refine marked places";
    } catch (error) {
      complain("The comment could not be carried on", error);
    }
  }

  #key(event) {
    const node = event.target.closest?.(".fl-family-picture");
    const moves = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
    if (event.key === "Escape") this.element.close();
    else if (node && event.key in moves) this.#walk(moves[event.key]);
    else if (node && event.key === "Enter") this.#take(node);
    else if (node && event.key === "g") useInGraph(node.dataset.imageId).then(() => this.element.close(), (error) => complain("The picture could not be used", error));
    else if (node && event.key === "c" && !(event.ctrlKey || event.metaKey)) this.#carry(node);
    else return keepNativeKeys(event);
    event.preventDefault();
    event.stopPropagation();
    return undefined;
  }
}

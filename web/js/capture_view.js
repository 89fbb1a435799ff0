// What a FeedbackCapture node shows: the pictures of its collection, newest first, and one way to judge them. Judgements
// live on the server; this view only shows them, so a reload, another tab or another node shows the same.
import { Choices } from "./choices.js";
import { ComparePanel } from "./compare.js";
import { element } from "./dom.js";
import { openFullView } from "./full_view.js";
import { marks } from "./marks.js";
import { PickBest } from "./pick_best.js";
import { PictureCard, starsFor, thumbsFor } from "./picture_card.js";
import { PictureGrid } from "./picture_grid.js";
import { pictures } from "./pictures.js";
import { Rank } from "./rank.js";
import { said } from "./said.js";
import { complain } from "./settings.js";
import { takeBack } from "./take_back.js";

const PAGE = 24;
const EMPTY = "Pictures appear here when the graph runs. Click the stars, or point at a picture and press 1 to 5.";
const ALL_RATED = "Every picture loaded here is rated.";
export const MODES = [
  { value: "stars", text: "Stars", title: "Rate with one to five stars" },
  { value: "thumbs", text: "Thumbs", title: "Rate with thumb up or thumb down" },
  { value: "best", text: "Best", title: "Pick the best picture of each prompt" },
  { value: "rank", text: "Rank", title: "Click the pictures of each prompt in order, best first" },
  { value: "compare", text: "A/B", title: "Compare two pictures at a time" },
];

export class CaptureView {
  #ids = [];
  #run = [];
  #next = null;
  #unratedOnly = false;
  #loading = 0;

  /**
   * @param collection function that says which collection to show now
   * @param mode {get(), set(value)}: where the way to judge is kept, with the node
   */
  constructor(collection, mode = { get: () => "stars", set() {} }) {
    this.collection = collection;
    this.mode = mode;
    this.#build();
    this.onChange = ({ detail }) => this.#showChange(detail.id);
    pictures.addEventListener("change", this.onChange);
    marks.addEventListener("change", this.onChange);
    this.onForget = ({ detail }) => this.#show(this.#ids.filter((id) => id !== detail.id));
    pictures.addEventListener("forget", this.onForget);
    // Somebody may have rated elsewhere while this page was in the background.
    this.onVisible = () => document.visibilityState === "visible" && this.refresh();
    document.addEventListener("visibilitychange", this.onVisible);
    this.onSaid = () => this.#showUndo();
    for (const event of ["said", "undone"]) said.addEventListener(event, this.onSaid);
    this.setMode(mode.get());
    this.#showUndo();
  }

  #build() {
    this.count = element("span", { className: "fl-count", role: "status" });
    this.modes = new Choices("How to judge", MODES, (value) => {
      this.mode.set(value);
      this.setMode(value);
    });
    this.undoButton = this.#button("Undo", "Take back what you said last (u)", () => this.undo());
    this.filter = this.#button("Unrated", "Show only pictures that you have not rated", () => this.#toggleFilter());
    this.filter.setAttribute("aria-pressed", "false");
    this.large = this.#button("Large", "One picture after the other, large, to rate and to mark (Space)", () => this.#openFirst());
    this.body = element("div", { className: "fl-body" });
    this.note = element("p", { className: "fl-empty", text: EMPTY });
    this.older = this.#button("Show older", "Load more pictures of this collection", () => this.#loadOlder());
    const bars = [
      element("div", { className: "fl-bar" }, this.modes.element),
      element("div", { className: "fl-bar" }, this.count, this.undoButton, this.filter, this.large),
    ];
    this.inner = element("div", { className: "fl-inner" }, ...bars, this.body, this.note, this.older);
    this.element = element("div", { className: "fl-capture" }, this.inner);
  }

  #button(text, title, click) {
    return element("button", { className: "fl-button", type: "button", text, title, on: { click } });
  }

  /** Another way to judge the same pictures. */
  setMode(value) {
    const known = MODES.some((mode) => mode.value === value) ? value : "stars";
    this.modes.show(known);
    this.panel?.remove();
    this.panel = this.#panels()[known]();
    this.body.replaceChildren(this.panel.element);
    const rates = known === "stars" || known === "thumbs";
    this.filter.hidden = !rates;
    this.large.hidden = known === "compare";
    this.#show(this.#ids);
  }

  #panels() {
    const shared = { open: (id, part) => this.open(id, part), undo: () => this.undo() };
    const stars = (id, given) => this.#stored(pictures.rate(id, given));
    const thumb = (id, given) => this.#stored(pictures.thumb(id, given));
    const byNumber = (id, number) => number <= 2 && thumb(id, number === 1 ? -1 : 1);
    return {
      stars: () => this.#ratingGrid((id) => starsFor(id, stars), stars),
      thumbs: () => this.#ratingGrid((id) => thumbsFor(id, thumb), byNumber),
      best: () => new PickBest(shared),
      rank: () => new Rank(shared),
      compare: () => new ComparePanel({ ...shared, collection: this.collection }),
    };
  }

  #ratingGrid(judge, rate) {
    const open = (id) => this.open(id);
    const card = (id, focus) => new PictureCard(id, { open, focus }, judge(id));
    const undo = async () => this.panel.focus((await this.undo())?.ids[0]);
    const actions = { zoom: open, accept: open, undo, comment: (id) => this.open(id, "comment") };
    return Object.assign(new PictureGrid("Captured pictures", card, rate, actions), { judge });
  }

  async #stored(writing) {
    try {
      await writing;
    } catch (error) {
      complain("The rating was not stored", error);
    }
  }

  /** The pictures of the run that just ended, shown first: one that gave the same as before records nothing new. */
  async showRun(ids) {
    this.#run = [...ids].reverse();
    await this.refresh();
  }

  /** Reads the newest pictures again; called on load, after a run and when the collection's name changes. */
  async refresh() {
    const turn = ++this.#loading;
    if (!this.collection()) return this.#show([]);
    try {
      const { ids, next } = await pictures.page(this.collection(), null, Math.max(PAGE, this.#ids.length));
      await pictures.need(this.#run);
      for (const id of this.panel.ids) marks.glance(id, true);
      if (turn !== this.#loading) return;
      this.#next = next;
      this.#show([...new Set([...this.#run.filter((id) => pictures.get(id)), ...ids])]);
    } catch (error) {
      complain("The pictures could not be listed", error);
    }
  }

  async #loadOlder() {
    try {
      const { ids, next } = await pictures.page(this.collection(), this.#next, PAGE);
      this.#next = next;
      this.#show([...this.#ids, ...ids.filter((id) => !this.#ids.includes(id))]);
    } catch (error) {
      complain("Older pictures could not be listed", error);
    }
  }

  #show(ids) {
    this.#ids = ids;
    const filtered = this.#unratedOnly && !this.filter.hidden;
    const shown = filtered ? ids.filter((id) => !pictures.get(id).rating) : ids;
    this.panel.show(shown, this.#run);
    this.note.textContent = ids.length ? ALL_RATED : EMPTY;
    this.note.hidden = shown.length > 0;
    this.body.hidden = !shown.length;
    this.older.hidden = !this.#next || this.modes.value === "compare";
    this.#showCount();
  }

  #showChange(id) {
    this.panel.showChange(id);
    this.#showCount();
  }

  #showCount() {
    const rated = this.#ids.filter((id) => pictures.get(id)?.rating).length;
    const more = this.#next ? "+" : "";
    this.count.textContent = this.#ids.length ? `${rated} of ${this.#ids.length}${more} rated` : "No pictures yet";
  }

  #showUndo() {
    this.undoButton.disabled = !said.last;
    this.undoButton.title = said.last ? `Take back: ${said.last.words} (u)` : "Nothing to take back";
  }

  undo() {
    return takeBack(this.count);
  }

  #toggleFilter() {
    this.#unratedOnly = !this.#unratedOnly;
    this.filter.setAttribute("aria-pressed", this.#unratedOnly);
    this.#show(this.#ids);
  }

  #openFirst() {
    const { ids } = this.panel;
    const first = ids.find((id) => !pictures.get(id).rating) ?? ids[0];
    if (first) this.open(first);
  }

  /** Where the pictures are not rated one by one, the large view has stars. `part`: "comment" begins there. */
  open(startId, part) {
    openFullView(this.panel.ids, startId, {
      rate: this.panel.rate ?? ((id, stars) => this.#stored(pictures.rate(id, stars))),
      part,
      judge: this.panel.judge,
      accept: this.panel.accept,
      closed: (id) => this.panel.focus(id),
    });
  }

  remove() {
    pictures.removeEventListener("change", this.onChange);
    pictures.removeEventListener("forget", this.onForget);
    marks.removeEventListener("change", this.onChange);
    document.removeEventListener("visibilitychange", this.onVisible);
    for (const event of ["said", "undone"]) said.removeEventListener(event, this.onSaid);
    this.panel.remove();
  }
}

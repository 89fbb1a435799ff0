// What a FeedbackCapture node shows: the pictures of its collection, newest first, each with stars. Ratings live on the
// server; this view only shows them, so a reload, another tab or another node shows the same.
import { element } from "./dom.js";
import { openFullView } from "./full_view.js";
import { takeKeys } from "./keys.js";
import { PictureCard } from "./picture_card.js";
import { pictures } from "./pictures.js";
import { complain } from "./settings.js";

const PAGE = 24;
const EMPTY = "Pictures appear here when the graph runs. Click the stars, or point at a picture and press 1 to 5.";
const ALL_RATED = "Every picture loaded here is rated.";
// ComfyUI deletes the selected node on these; here the focus is on a picture.
const KEPT_FROM_CANVAS = new Set(["Delete", "Backspace"]);

const isTyping = () => document.activeElement?.matches("input, textarea, [contenteditable='true']");

export class CaptureView {
  #cards = new Map();
  #ids = [];
  #run = [];
  #next = null;
  #unratedOnly = false;
  #focused = null;
  #loading = 0;

  /** @param collection function that says which collection to show now */
  constructor(collection) {
    this.collection = collection;
    this.#build();
    this.onChange = ({ detail }) => this.#showChange(detail.id);
    pictures.addEventListener("change", this.onChange);
    // Somebody may have rated elsewhere while this page was in the background.
    this.onVisible = () => document.visibilityState === "visible" && this.refresh();
    document.addEventListener("visibilitychange", this.onVisible);
    this.observer = new ResizeObserver(() => this.#fitColumns());
    this.observer.observe(this.grid);
  }

  #build() {
    this.count = element("span", { className: "fl-count", role: "status" });
    this.filter = this.#button("Unrated", "Show only pictures without stars", () => this.#toggleFilter());
    this.filter.setAttribute("aria-pressed", "false");
    const large = this.#button("Large", "Rate one picture after the other, large (Space)", () => this.#openFirst());
    this.grid = element("div", { className: "fl-grid", role: "group", "aria-label": "Captured pictures" });
    this.grid.dataset.captureWheel = "true";
    this.note = element("p", { className: "fl-empty", text: EMPTY });
    this.older = this.#button("Show older", "Load more pictures of this collection", () => this.#loadOlder());
    const bar = element("div", { className: "fl-bar" }, this.count, this.filter, large);
    const listeners = {
      keydown: (event) => this.#key(event),
      pointerover: (event) => this.#hover(event),
      pointerleave: () => this.#leave(),
    };
    this.inner = element("div", { className: "fl-inner" }, bar, this.grid, this.note, this.older);
    this.element = element("div", { className: "fl-capture", on: listeners }, this.inner);
  }

  #button(text, title, click) {
    return element("button", { className: "fl-button", type: "button", text, title, on: { click } });
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
      if (turn !== this.#loading) return;
      this.#next = next;
      this.#show([...new Set([...this.#run, ...ids])]);
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
    const shown = this.#unratedOnly ? ids.filter((id) => !pictures.starsOf(id)) : ids;
    const cards = shown.map((id) => this.#cards.get(id) ?? this.#card(id));
    this.#cards = new Map(cards.map((card) => [card.id, card]));
    const hadFocus = this.grid.contains(document.activeElement) && document.activeElement;
    this.grid.replaceChildren(...cards.map((card) => card.element));
    if (hadFocus && hadFocus.isConnected) hadFocus.focus({ preventScroll: true });
    this.note.textContent = ids.length ? ALL_RATED : EMPTY;
    this.note.hidden = cards.length > 0;
    this.older.hidden = !this.#next;
    this.#setRoving(this.#cards.get(this.#focused?.id) ?? cards[0]);
    this.#fitColumns();
    this.#showCount();
  }

  #card(id) {
    return new PictureCard(id, {
      rate: (imageId, stars) => this.rate(imageId, stars),
      open: (imageId) => this.#open(imageId),
      focus: (card) => this.#takeFocus(card),
    });
  }

  async rate(id, stars) {
    try {
      await pictures.rate(id, stars);
    } catch (error) {
      complain("The rating was not stored", error);
    }
  }

  #showChange(id) {
    this.#cards.get(id)?.show();
    this.#showCount();
  }

  #showCount() {
    const rated = this.#ids.filter((id) => pictures.starsOf(id)).length;
    const more = this.#next ? "+" : "";
    this.count.textContent = this.#ids.length ? `${rated} of ${this.#ids.length}${more} rated` : "No pictures yet";
  }

  #toggleFilter() {
    this.#unratedOnly = !this.#unratedOnly;
    this.filter.setAttribute("aria-pressed", this.#unratedOnly);
    this.#show(this.#ids);
  }

  #setRoving(card) {
    for (const other of this.#cards.values()) other.setReachable(other === card);
    this.#focused = card ?? null;
  }

  #takeFocus(card) {
    this.#setRoving(card);
    takeKeys(this.element, (stars) => this.#focused && this.rate(this.#focused.id, stars));
  }

  /** The picture under the pointer has the keys too, unless somebody is typing elsewhere. */
  #hover(event) {
    const id = event.target.closest(".fl-card")?.dataset.imageId;
    if (!id || isTyping() || this.#cards.get(id).element.contains(document.activeElement)) return;
    this.#cards.get(id).element.focus({ preventScroll: true });
    this.hoverFocus = true;
  }

  #leave() {
    if (this.hoverFocus && this.element.contains(document.activeElement)) document.activeElement.blur();
    this.hoverFocus = false;
  }

  #key(event) {
    this.hoverFocus = false;
    const columns = getComputedStyle(this.grid).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
    const onCard = event.target.classList.contains("fl-card");
    if (onCard && event.key in steps) this.#walk(steps[event.key]);
    else if (onCard && event.key === " ") this.#open(this.#focused.id);
    else if (!KEPT_FROM_CANVAS.has(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #walk(step) {
    const cards = [...this.#cards.values()];
    const target = Math.min(Math.max(cards.indexOf(this.#focused) + step, 0), cards.length - 1);
    cards[target]?.element.focus();
  }

  #openFirst() {
    const ids = [...this.#cards.keys()];
    const first = ids.find((id) => !pictures.starsOf(id)) ?? ids[0];
    if (first) this.#open(first);
  }

  #open(startId) {
    openFullView([...this.#cards.keys()], startId, {
      rate: (id, stars) => this.rate(id, stars),
      closed: (id) => this.#cards.get(id)?.element.focus(),
    });
  }

  /** Few pictures are shown large, many small. */
  #fitColumns() {
    const count = Math.max(this.#cards.size, 1);
    const columns = Math.min(Math.ceil(Math.sqrt(count)), Math.max(Math.floor(this.grid.clientWidth / 130), 1));
    this.grid.style.setProperty("--fl-columns", columns);
  }

  remove() {
    pictures.removeEventListener("change", this.onChange);
    document.removeEventListener("visibilitychange", this.onVisible);
    this.observer.disconnect();
  }
}

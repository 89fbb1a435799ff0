// The sidebar's list of pictures. Only the rows in sight exist, and pages are read as the end comes near, so that it
// stays as quick with 100,000 pictures as with ten.
import { element } from "./dom.js";
import { takeKeys } from "./keys.js";
import { pictures } from "./pictures.js";
import { ACTIONS, Row } from "./sidebar_row.js";

const ROW_HEIGHT = 96;
const COLUMN_WIDTH = 330;
const ROWS_BEYOND = 3; // above and below what is in sight, so that slow scrolling never shows a gap
const FIRST = 100; // pictures, so that something is seen at once
const PAGE = 500;
const AHEAD = 60; // pictures before the end of what was read, where the next page is asked for
const REST_MS = 90; // without scrolling, before thumbnails are asked for

export class PictureList {
  #ids = [];
  #next = null;
  #rows = new Map();
  #free = [];
  #active = 0;
  #turn = 0;
  #reading = false;

  /** @param page async (cursor, limit) => {ids, next}; @param on those of Row, shown(), failed(error) */
  constructor(page, on) {
    this.page = page;
    this.on = { ...on, point: (index) => this.#activate(index) };
    this.space = element("div", { className: "fl-list-space", role: "presentation" });
    const listeners = {
      scroll: () => this.#scrolled(),
      keydown: (event) => this.#key(event),
      focus: () => this.#takeKeys(),
    };
    const options = { className: "fl-list", role: "listbox", tabindex: 0, "aria-label": "Captured pictures" };
    this.element = element("div", { ...options, on: listeners }, this.space);
    pictures.addEventListener("change", ({ detail }) => this.#rowOf(detail.id)?.showStars());
    pictures.addEventListener("forget", ({ detail }) => this.#forget(detail.id));
    new ResizeObserver(() => this.#render()).observe(this.element);
  }

  get ids() {
    return this.#ids;
  }

  get visibleIds() {
    return [...this.#rows.values()].map((row) => row.id);
  }

  get isComplete() {
    return this.#next === null;
  }

  get atTop() {
    return this.element.scrollTop < ROW_HEIGHT;
  }

  /** Starts over with the first page. */
  async restart() {
    const turn = ++this.#turn;
    const { ids, next } = await this.page(null, FIRST);
    if (turn !== this.#turn) return;
    this.#ids = ids;
    this.#next = next;
    this.#reading = false;
    this.#active = 0;
    this.element.scrollTop = 0;
    this.#changed();
  }

  async #readOn() {
    if (this.#reading || !this.#next) return;
    const turn = this.#turn;
    this.#reading = true;
    try {
      const { ids, next } = await this.page(this.#next, PAGE);
      if (turn !== this.#turn) return;
      this.#ids.push(...ids);
      this.#next = next;
    } finally {
      if (turn === this.#turn) this.#reading = false;
    }
    this.#changed();
  }

  #changed() {
    this.on.shown();
    this.#render();
    this.#settle();
  }

  #scrolled() {
    this.#render();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.#settle(), REST_MS);
  }

  #settle() {
    for (const row of this.#rows.values()) row.showImage();
  }

  get #columns() {
    return Math.max(Math.floor(this.element.clientWidth / COLUMN_WIDTH), 1);
  }

  #render() {
    const { clientHeight, clientWidth, scrollTop } = this.element;
    if (!clientHeight) return; // not in the document, or folded away
    const columns = this.#columns;
    this.space.style.height = `${Math.ceil(this.#ids.length / columns) * ROW_HEIGHT}px`;
    const first = Math.max(Math.floor(scrollTop / ROW_HEIGHT) - ROWS_BEYOND, 0) * columns;
    const end = (Math.ceil((scrollTop + clientHeight) / ROW_HEIGHT) + ROWS_BEYOND) * columns;
    const last = Math.min(end, this.#ids.length);
    this.#release(first, last);
    for (let index = first; index < last; index++) {
      const row = this.#rows.get(index) ?? this.#take(index);
      if (row.id !== this.#ids[index] || row.index !== index) row.show(this.#ids[index], index);
      row.place((index % columns) * (clientWidth / columns), Math.floor(index / columns) * ROW_HEIGHT, clientWidth / columns);
      row.setActive(index === this.#active);
    }
    this.#nameActive();
    if (last >= this.#ids.length - AHEAD) this.#readOn().catch(this.on.failed);
  }

  #release(first, last) {
    for (const [index, row] of this.#rows) {
      if (index >= first && index < last) continue;
      this.#rows.delete(index);
      row.element.hidden = true;
      this.#free.push(row);
    }
  }

  #take(index) {
    const row = this.#free.pop() ?? new Row(this.on);
    row.element.hidden = false;
    if (!row.element.isConnected) this.space.append(row.element);
    this.#rows.set(index, row);
    this.restLater();
    return row;
  }

  /** Rows that came without scrolling (a new page, a wider panel) want their thumbnails too. */
  restLater() {
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.#settle(), REST_MS);
  }

  #rowOf(id) {
    for (const row of this.#rows.values()) if (row.id === id) return row;
    return undefined;
  }

  #forget(id) {
    const index = this.#ids.indexOf(id);
    if (index < 0) return;
    this.#ids.splice(index, 1);
    this.#active = Math.max(Math.min(this.#active, this.#ids.length - 1), 0);
    this.#changed();
  }

  // Keyboard: the list has the focus, one picture in it is active.

  get activeId() {
    return this.#ids[this.#active];
  }

  #takeKeys() {
    const walk = (steps) => () => this.#walkTo(this.#active + steps());
    const open = (part) => () => this.activeId && this.on.open(this.activeId, part);
    takeKeys(this.element, (stars) => this.activeId && this.on.rate(this.activeId, stars), {
      left: walk(() => -1),
      right: walk(() => 1),
      up: walk(() => -this.#columns),
      down: walk(() => this.#columns),
      zoom: open(),
      accept: open(),
      comment: open("comment"),
      undo: () => this.on.undo(),
    });
  }

  #nameActive() {
    const row = this.#rows.get(this.#active);
    if (row) this.element.setAttribute("aria-activedescendant", row.element.id);
    else this.element.removeAttribute("aria-activedescendant");
    this.element.setAttribute("aria-setsize", this.isComplete ? this.#ids.length : -1);
  }

  #activate(index) {
    this.#active = index;
    this.#render();
    this.element.focus({ preventScroll: true });
  }

  /** Makes a picture the active one and scrolls to it. */
  activateId(id) {
    const index = this.#ids.indexOf(id);
    if (index >= 0) this.#walkTo(index);
  }

  #walkTo(index) {
    this.#active = Math.min(Math.max(index, 0), Math.max(this.#ids.length - 1, 0));
    const top = Math.floor(this.#active / this.#columns) * ROW_HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + ROW_HEIGHT > scrollTop + clientHeight) this.element.scrollTop = top + ROW_HEIGHT - clientHeight;
    this.#render();
    this.element.focus({ preventScroll: true });
  }

  /** Keys that aren't ComfyUI commands; the others are in #takeKeys. */
  #key(event) {
    const screen = Math.max(Math.floor(this.element.clientHeight / ROW_HEIGHT), 1) * this.#columns;
    const steps = { PageDown: screen, PageUp: -screen, Home: -Infinity, End: Infinity };
    const action = ACTIONS.find(({ key }) => key === event.key);
    if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) this.#walkTo(this.#active + steps[event.key]);
    else if (action && this.activeId) this.on[action.name](this.activeId);
    else if (!["Backspace", "Delete"].includes(event.key)) return; // which would delete the selected node
    event.preventDefault();
    event.stopPropagation();
  }
}

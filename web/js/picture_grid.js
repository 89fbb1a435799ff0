// Cards in a grid that is one stop of the Tab key: arrows walk through the pictures, and the one that has the focus, or
// is under the pointer, has the keys.
import { element } from "./dom.js";
import { keepNativeKeys, takeKeys } from "./keys.js";

const SMALLEST = 130; // CSS pixels that a picture is wide
// ComfyUI deletes the selected node on these; here the focus is on a picture.
const KEPT_FROM_CANVAS = new Set(["Delete", "Backspace"]);

const isTyping = () => document.activeElement?.matches("input, textarea, [contenteditable='true']");

export class PictureGrid {
  #cards = new Map();
  #focused = null;

  /**
   * @param makeCard (id, focus) -> PictureCard
   * @param rate (id, number) for the digits, and actions: {name: (id) => ...} for the other keys, about the focused card
   */
  constructor(label, makeCard, rate, actions = {}) {
    this.makeCard = makeCard;
    this.rate = rate;
    this.actions = actions;
    const on = {
      keydown: (event) => this.#key(event),
      pointerover: (event) => this.#hover(event),
      pointerleave: () => this.#leave(),
    };
    this.element = element("div", { className: "fl-grid", role: "group", "aria-label": label, on });
    this.element.dataset.captureWheel = "true";
    this.observer = new ResizeObserver(() => this.#fitColumns());
    this.observer.observe(this.element);
  }

  get ids() {
    return [...this.#cards.keys()];
  }

  show(ids) {
    const cards = ids.map((id) => this.#cards.get(id) ?? this.makeCard(id, (card) => this.#takeFocus(card)));
    this.#cards = new Map(cards.map((card) => [card.id, card]));
    const hadFocus = this.element.contains(document.activeElement) && document.activeElement;
    this.element.replaceChildren(...cards.map((card) => card.element));
    if (hadFocus && hadFocus.isConnected) hadFocus.focus({ preventScroll: true });
    this.#setRoving(this.#cards.get(this.#focused?.id) ?? cards[0]);
    this.#fitColumns();
  }

  /** A picture was judged or marked, here or elsewhere. */
  showChange(id) {
    this.#cards.get(id)?.show();
  }

  focus(id) {
    (this.#cards.get(id) ?? this.#focused)?.element.focus();
  }

  #setRoving(card) {
    for (const other of this.#cards.values()) other.setReachable(other === card);
    this.#focused = card ?? null;
  }

  #takeFocus(card) {
    this.#setRoving(card);
    const about = (act) => (number) => this.#focused && act(this.#focused.id, number);
    const own = Object.entries(this.actions).map(([name, act]) => [name, about(act)]);
    takeKeys(this.element, about(this.rate), { ...this.#walking(), ...Object.fromEntries(own) });
  }

  #walking() {
    const columns = () => getComputedStyle(this.element).gridTemplateColumns.split(" ").length;
    return {
      left: () => this.#walk(-1),
      right: () => this.#walk(1),
      up: () => this.#walk(-columns()),
      down: () => this.#walk(columns()),
    };
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
    keepNativeKeys(event);
    const ends = { Home: -Infinity, End: Infinity };
    if (event.key in ends) this.#walk(ends[event.key]);
    else if (!KEPT_FROM_CANVAS.has(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #walk(step) {
    const cards = [...this.#cards.values()];
    const target = Math.min(Math.max(cards.indexOf(this.#focused) + step, 0), cards.length - 1);
    cards[target]?.element.focus();
  }

  /** Few pictures are shown large, many small. */
  #fitColumns() {
    const count = Math.max(this.#cards.size, 1);
    const columns = Math.min(Math.ceil(Math.sqrt(count)), Math.max(Math.floor(this.element.clientWidth / SMALLEST), 1));
    this.element.style.setProperty("--fl-columns", columns);
  }

  remove() {
    this.observer.disconnect();
  }
}

// One row of the sidebar's list. Rows are few and are used again: `show` puts another picture into the same elements.
import { element, starsInWords } from "./dom.js";
import { thumbnailUrl } from "./feedback_api.js";
import { pictures } from "./pictures.js";
import { currentRater } from "./settings.js";
import { Stars } from "./stars.js";

const PIXEL_ART_UP_TO = 128;
const thisYear = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
const anyYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
// Thumbnails that this page has shown: the browser has them, so a row need not wait for the scrolling to rest.
const seen = new Set();
let rows = 0;

/** What can be done with a picture, with the keys of the list that do the same. */
export const ACTIONS = [
  { name: "save", key: "s", text: "⤓", title: "Save a copy (s)" },
  { name: "use", key: "g", text: "↳", title: "Use it in the graph, as the image of a Load Image node (g)" },
  { name: "family", key: "r", text: "↺", title: "Rounds: what it came from and what came of it (r)" },
  { name: "remove", key: "Delete", text: "×", title: "Delete this picture and all that was said of it (Delete)" },
];

function action(text, title, click) {
  const options = { className: "fl-row-action", type: "button", title, "aria-label": title, tabindex: -1 };
  return element("button", { ...options, text, on: { click } });
}

/** The mean of what other raters gave, in stars, or null. */
function othersStars(ratings) {
  const others = (ratings ?? []).filter((rating) => rating.axis === "overall" && rating.rater !== currentRater());
  if (!others.length) return null;
  const fractions = others.map(({ value, scale }) => (value - scale.min) / (scale.max - scale.min));
  return 1 + (4 * fractions.reduce((sum, fraction) => sum + fraction, 0)) / fractions.length;
}

function dateInWords(text) {
  const date = new Date(text);
  return (date.getFullYear() === new Date().getFullYear() ? thisYear : anyYear).format(date);
}

function factsOf(picture) {
  const others = othersStars(picture.ratings);
  return [
    dateInWords(picture.created_at),
    others !== null && `others ${others.toFixed(1)}★`,
    typeof picture.watermark === "number" && `watermark ${picture.watermark.toFixed(2)}`,
    picture.collection, // last, since it may be long
  ].filter(Boolean);
}

export class Row {
  /** @param on {rate(id, stars), open(id), point(index)} and those of ACTIONS, with the id */
  constructor(on) {
    this.image = element("img", { className: "fl-thumb", draggable: "false", alt: "" });
    this.image.addEventListener("load", () => seen.add(this.id));
    this.image.addEventListener("error", () => this.element.classList.add("fl-broken"));
    this.prompt = element("p", { className: "fl-row-prompt" });
    this.facts = element("p", { className: "fl-row-facts" });
    this.stars = new Stars((stars) => on.rate(this.id, stars));
    const actions = ACTIONS.map(({ name, text, title }) => action(text, title, () => on[name](this.id)));
    this.element = element(
      "div",
      { className: "fl-row", role: "option", id: `fl-row-${++rows}`, on: { pointerdown: () => on.point(this.index) } },
      element("div", { className: "fl-thumb-frame", on: { click: () => on.open(this.id) } }, this.image),
      element("div", { className: "fl-row-text" }, this.prompt, this.facts, this.stars.element),
      element("div", { className: "fl-row-actions" }, ...actions),
    );
  }

  show(id, index) {
    const picture = pictures.get(id);
    const other = id !== this.id;
    this.id = id;
    this.index = index;
    this.element.dataset.imageId = id;
    this.element.setAttribute("aria-posinset", index + 1);
    if (other) this.#showPicture(picture);
    this.facts.textContent = factsOf(picture).join(" · ");
    this.facts.title = this.facts.textContent;
    this.showStars();
  }

  #showPicture({ prompt, width, height }) {
    this.element.classList.remove("fl-broken");
    this.image.removeAttribute("src");
    this.image.classList.toggle("fl-pixels", Math.max(width, height) <= PIXEL_ART_UP_TO);
    this.prompt.textContent = prompt ?? "(no prompt)";
    this.prompt.title = prompt ?? "";
    if (seen.has(this.id)) this.showImage();
  }

  /** Asks for the thumbnail; called once the scrolling rests, so that rows that only pass by cost nothing. */
  showImage() {
    if (!this.image.hasAttribute("src")) this.image.src = thumbnailUrl(this.id);
  }

  showStars() {
    const { prompt, stars } = pictures.get(this.id);
    this.stars.show(stars);
    this.element.setAttribute("aria-label", `${prompt ?? "Picture"}: ${starsInWords(stars)}`);
  }

  place(x, y, width) {
    this.element.style.transform = `translate(${x}px, ${y}px)`;
    this.element.style.width = `${width}px`;
  }

  setActive(active) {
    this.element.classList.toggle("fl-active", active);
    this.element.setAttribute("aria-selected", active);
  }
}

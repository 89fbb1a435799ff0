// Which pictures the sidebar lists, and in which order. The values are those of the images route.
import { element } from "./dom.js";
import { currentRater } from "./settings.js";

const TYPING_MS = 300;
const SORTS = { newest: "Newest first", oldest: "Oldest first", best: "Best first", worst: "Worst first", watermark: "Watermark first" };
const WATERMARK = "How surely a detector sees a watermark: 0 to 1";
const RATED = { "": "All", false: "Not rated", true: "Rated" };

const starValue = (stars) => (stars ? (Number(stars) - 1) / 4 : ""); // as the store keeps it, 0..1

/** The moment at which a day, as a date field gives it, begins here; `later` days after it. */
function midnight(date, later = 0) {
  const moment = new Date(`${date}T00:00`);
  moment.setDate(moment.getDate() + later);
  return moment.toISOString();
}

function options(select, entries) {
  const chosen = select.value;
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value, text })));
  select.value = entries.some(([value]) => value === chosen) ? chosen : entries[0][0];
}

export class Filters {
  /** @param changed called when other pictures are wanted */
  constructor(changed) {
    this.changed = changed;
    this.fields = this.#fields();
    this.element = element(
      "form",
      { className: "fl-filters", role: "search", on: { submit: (event) => event.preventDefault() } },
      this.fields.text,
      element("div", { className: "fl-filter-line" }, this.fields.rated, this.fields.sort),
      this.#more(),
    );
    this.element.addEventListener("input", (event) => this.#input(event.target));
    this.element.addEventListener("keydown", (event) => event.stopPropagation());
    this.#showCount();
  }

  #fields() {
    const starChoices = [["", "any"], ...[1, 2, 3, 4, 5].map((stars) => [String(stars), "★".repeat(stars)])];
    const fraction = { type: "number", min: 0, max: 1, step: "any", placeholder: "any", className: "fl-field" };
    return {
      text: element("input", { type: "search", className: "fl-field", placeholder: "Search prompts", "aria-label": "Search prompts" }),
      rated: this.#select(Object.entries(RATED), "Rated or not"),
      sort: this.#select(Object.entries(SORTS), "Order"),
      collection: this.#select([["", "All collections"]], "Collection"),
      rater: this.#select([["", "Anybody"]], "Rater"),
      minStars: this.#select(starChoices, "Fewest stars"),
      maxStars: this.#select(starChoices, "Most stars"),
      since: element("input", { type: "date", className: "fl-field", "aria-label": "Captured since" }),
      until: element("input", { type: "date", className: "fl-field", "aria-label": "Captured until" }),
      minWatermark: element("input", { ...fraction, "aria-label": "Lowest watermark score", title: WATERMARK }),
      maxWatermark: element("input", { ...fraction, "aria-label": "Highest watermark score", title: WATERMARK }),
    };
  }

  #select(entries, label) {
    const select = element("select", { className: "fl-field", "aria-label": label });
    options(select, entries);
    return select;
  }

  #more() {
    const { collection, rater, minStars, maxStars, since, until, minWatermark, maxWatermark } = this.fields;
    this.summary = element("summary", {});
    const clear = element("button", { className: "fl-button", type: "button", text: "Clear", on: { click: () => this.clear() } });
    const line = (label, ...controls) => [element("span", { text: label }), element("div", { className: "fl-filter-line" }, ...controls)];
    return element(
      "details",
      { className: "fl-more" },
      this.summary,
      element(
        "div",
        { className: "fl-more-grid" },
        ...line("Collection", collection),
        ...line("Rater", rater),
        ...line("Stars", minStars, "–", maxStars),
        ...line("Since", since),
        ...line("Until", until),
        ...line("Watermark", minWatermark, "–", maxWatermark),
        ...line("", clear),
      ),
    );
  }

  #input(field) {
    this.#showCount();
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.changed(), field.tagName === "SELECT" ? 0 : TYPING_MS);
  }

  #showCount() {
    const inside = ["collection", "rater", "minStars", "maxStars", "since", "until", "minWatermark", "maxWatermark"];
    const count = inside.filter((name) => this.fields[name].value !== "").length;
    this.summary.textContent = count ? `More filters (${count})` : "More filters";
  }

  clear() {
    for (const field of Object.values(this.fields)) field.value = field === this.fields.sort ? "newest" : "";
    this.#showCount();
    this.changed();
  }

  get collection() {
    return this.fields.collection.value;
  }

  /** True when pictures without a watermark score can't be listed. */
  get asksForWatermarks() {
    const { sort, minWatermark, maxWatermark } = this.fields;
    return sort.value === "watermark" || minWatermark.value !== "" || maxWatermark.value !== "";
  }

  /** True when what is listed is a whole collection, or everything. */
  get isWhole() {
    return Object.keys(this.query()).every((name) => ["collection", "sort"].includes(name));
  }

  /** The parameters of the images route, without those that are not set. */
  query() {
    const value = Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value]));
    const asked = {
      collection: value.collection,
      rated: value.rated,
      rater: value.rater,
      min_value: starValue(value.minStars),
      max_value: starValue(value.maxStars),
      since: value.since && midnight(value.since),
      until: value.until && midnight(value.until, 1),
      text: value.text.trim(),
      min_watermark: value.minWatermark,
      max_watermark: value.maxWatermark,
      sort: value.sort === "newest" ? "" : value.sort,
    };
    return Object.fromEntries(Object.entries(asked).filter(([, one]) => one !== ""));
  }

  /** Names to choose from, as the server's stats give them. */
  offer(collections, raters) {
    const counted = Object.entries(collections).map(([name, count]) => [name, `${name} (${count.toLocaleString()})`]);
    options(this.fields.collection, [["", "All collections"], ...counted]);
    const others = raters.filter((name) => name !== currentRater()).map((name) => [name, name]);
    options(this.fields.rater, [["", "Anybody"], [currentRater(), `Me (${currentRater()})`], ...others]);
  }
}

// One captured picture in a grid, with what judges it below: stars, thumbs, or the place that it took in an order.
import { element, plural, starsInWords } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { marks } from "./marks.js";
import { pictures } from "./pictures.js";
import { Stars } from "./stars.js";
import { Thumbs } from "./thumbs.js";

const PIXEL_ART_UP_TO = 128;
const THUMB_WORDS = { "-1": "thumb down", 0: "not rated", 1: "thumb up" };

export const isPixelArt = ({ width, height }) => Math.max(width, height) <= PIXEL_ART_UP_TO;

/** What judges a card: {element, show(), words(), given(), setReachable(reachable)}. */
export function starsFor(id, rate) {
  const stars = new Stars((given) => rate(id, given));
  return {
    element: stars.element,
    show: () => stars.show(pictures.starsOf(id)),
    words: () => starsInWords(pictures.starsOf(id)),
    given: () => pictures.starsOf(id) > 0,
    setReachable: (reachable) => stars.setReachable(reachable),
  };
}

export function thumbsFor(id, thumb) {
  const thumbs = new Thumbs((given) => thumb(id, given));
  return {
    element: thumbs.element,
    show: () => thumbs.show(pictures.thumbOf(id)),
    words: () => THUMB_WORDS[pictures.thumbOf(id)],
    given: () => pictures.thumbOf(id) !== 0,
    setReachable: (reachable) => thumbs.setReachable(reachable),
  };
}

export class PictureCard {
  /** @param on {rate(id, stars), open(id), focus(card), click?(id)}; a click opens unless `click` says otherwise. */
  constructor(id, on, judge = starsFor(id, on.rate)) {
    this.id = id;
    this.judge = judge;
    this.image = this.#image();
    this.badge = element("span", { className: "fl-badge" });
    const click = () => (on.click ?? on.open)(id);
    const frame = element("div", { className: "fl-frame", on: { click } }, this.image, this.badge);
    frame.classList.toggle("fl-picks", Boolean(on.click));
    const attributes = { role: "group", tabindex: -1, "data-image-id": id, on: { focusin: () => on.focus(this) } };
    this.element = element("div", { className: "fl-card", ...attributes }, frame, judge.element);
    this.show();
  }

  #image() {
    const picture = pictures.get(this.id);
    const image = element("img", {
      className: "fl-image",
      src: pictureUrl(this.id),
      alt: picture.prompt ?? "Captured picture",
      loading: "lazy",
      draggable: "false",
      width: picture.width,
      height: picture.height,
      on: { error: () => this.element.classList.add("fl-broken"), load: () => marks.glance(this.id) },
    });
    image.classList.toggle("fl-pixels", isPixelArt(picture));
    return image;
  }

  show() {
    const count = marks.count(this.id);
    this.judge.show();
    this.badge.textContent = count || "";
    this.badge.title = plural(count, "mark");
    this.badge.hidden = !count;
    this.element.classList.toggle("fl-done", this.judge.given());
    const said = [this.judge.words(), count && plural(count, "mark")].filter(Boolean).join(", ");
    this.element.setAttribute("aria-label", `${pictures.get(this.id).prompt ?? "Picture"}: ${said}`);
  }

  setReachable(reachable) {
    this.element.tabIndex = reachable ? 0 : -1;
    this.judge.setReachable(reachable);
  }
}

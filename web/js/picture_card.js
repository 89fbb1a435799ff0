// One captured picture with its stars, in the grid of a FeedbackCapture node.
import { element, starsInWords } from "./dom.js";
import { pictureUrl } from "./feedback_api.js";
import { pictures } from "./pictures.js";
import { Stars } from "./stars.js";

const PIXEL_ART_UP_TO = 128;

export class PictureCard {
  /** @param on {rate(id, stars), open(id), focus(card)} */
  constructor(id, on) {
    const picture = pictures.get(id);
    this.id = id;
    this.stars = new Stars((stars) => on.rate(id, stars));
    this.image = element("img", {
      className: "fl-image",
      src: pictureUrl(id),
      alt: picture.prompt ?? "Captured picture",
      loading: "lazy",
      draggable: "false",
      width: picture.width,
      height: picture.height,
      on: { error: () => this.element.classList.add("fl-broken") },
    });
    this.image.classList.toggle("fl-pixels", Math.max(picture.width, picture.height) <= PIXEL_ART_UP_TO);
    this.element = element(
      "div",
      {
        className: "fl-card",
        role: "group",
        tabindex: -1,
        "data-image-id": id,
        on: { focusin: () => on.focus(this) },
      },
      element("div", { className: "fl-frame", on: { click: () => on.open(id) } }, this.image),
      this.stars.element,
    );
    this.show();
  }

  show() {
    const { prompt, stars } = pictures.get(this.id);
    this.stars.show(stars);
    this.element.classList.toggle("fl-done", stars > 0);
    this.element.setAttribute("aria-label", `${prompt ?? "Picture"}: ${starsInWords(stars)}`);
  }

  setReachable(reachable) {
    this.element.tabIndex = reachable ? 0 : -1;
    this.stars.setReachable(reachable);
  }
}

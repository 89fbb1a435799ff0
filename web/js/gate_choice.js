// What has been picked so far of the pictures of one wait, for each way to judge.
import { plural } from "./dom.js";

const NONE = { choose: "None of them", rank: "None of them", approve: "Reject" };

export class Choice {
  constructor({ mode, images }) {
    this.mode = mode;
    this.images = images;
    // Whoever approves takes out; whoever chooses or ranks takes in.
    this.picked = mode === "approve" ? [...images] : [];
  }

  pick(id) {
    if (this.mode === "choose") this.picked = [id];
    else if (this.picked.includes(id)) this.picked = this.picked.filter((other) => other !== id);
    else this.picked = [...this.picked, id];
    if (this.mode === "approve") this.picked = this.images.filter((one) => this.picked.includes(one));
    else if (this.mode === "rank") this.#fillLastPlace();
  }

  #fillLastPlace() {
    const left = this.images.filter((id) => !this.picked.includes(id));
    if (left.length === 1 && this.images.length > 1 && this.picked.length) this.picked = [...this.picked, left[0]];
  }

  get complete() {
    const { length } = this.picked;
    return this.mode === "rank" ? length === this.images.length : length > 0;
  }

  /** Enter on a picture takes it first, unless there is nothing left to take. */
  takesFirst(id) {
    return this.mode === "approve" ? false : this.mode === "choose" ? !this.picked.includes(id) : !this.complete;
  }

  has(id) {
    return this.picked.includes(id);
  }

  numberOf(id) {
    return this.images.indexOf(id) + 1;
  }

  get title() {
    if (this.mode === "choose") return "Choose the picture that goes on";
    if (this.mode === "rank") return "Click the pictures in order, best first";
    return this.images.length > 1 ? "Click away what should not go on" : "Should this picture go on?";
  }

  /** On the button below a picture. */
  labelOf(id) {
    if (this.mode === "choose") return this.has(id) ? "Goes on" : "Choose";
    if (this.mode === "rank") return this.has(id) ? `Place ${this.picked.indexOf(id) + 1}` : "–";
    return this.has(id) ? "Goes on" : "Left out";
  }

  wordsOf(id) {
    const label = this.labelOf(id);
    return `picture ${this.numberOf(id)}, ${label === "–" ? "no place yet" : label.toLowerCase()}`;
  }

  get goOn() {
    const { length } = this.images;
    if (this.mode === "choose") return this.complete ? `Go on with picture ${this.numberOf(this.picked[0])}` : "Go on";
    if (this.mode === "rank") return "Go on in this order";
    return length === 1 ? "Approve" : `Approve ${this.picked.length} of ${plural(length, "picture")}`;
  }

  get none() {
    return this.mode === "approve" && this.images.length > 1 ? "Reject all" : NONE[this.mode];
  }
}

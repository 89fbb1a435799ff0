// What this page knows of captured pictures and of my rating of them. All widgets look at the same ones, so that two
// nodes, or a node and the full view, never disagree. A rating is shown at once and taken back if it was not stored.
import { secondsSince, starsInWords } from "./dom.js";
import { clearRating, fetchImage, fetchImages } from "./feedback_api.js";
import { AXIS, postRating, takeBack } from "./judgement_api.js";
import { said } from "./said.js";
import { currentRater } from "./settings.js";
import { MAX_STARS } from "./stars.js";

const STAR_SCALE = { min: 1, max: MAX_STARS };
const THUMB_SCALE = { min: 0, max: 1 };

function myRating(ratings) {
  return (ratings ?? []).filter((rating) => rating.axis === AXIS && rating.rater === currentRater()).at(-1) ?? null;
}

/** A rating as a fraction of its scale, so that stars and thumbs can show what the other gave. */
const fractionOf = ({ value, scale }) => (value - scale.min) / (scale.max - scale.min);
const starsOf = (rating) => (rating ? Math.round(1 + fractionOf(rating) * (MAX_STARS - 1)) : 0);
const thumbOf = (rating) => (rating ? Math.sign(fractionOf(rating) - 0.5) : 0);
const same = (one, other) => one?.value === other?.value && one?.scale.max === other?.scale.max;
const inWords = (rating) => {
  if (!rating) return "no rating";
  if (rating.scale.max === THUMB_SCALE.max) return rating.value ? "thumb up" : "thumb down";
  return starsInWords(starsOf(rating));
};

function nullIfGone(error) {
  if (error.status === 404) return null;
  throw error;
}

class Pictures extends EventTarget {
  #pictures = new Map();
  #queues = new Map();
  #onShow = {};

  get(id) {
    return this.#pictures.get(id);
  }

  /** 1 to 5, or 0 where I have not rated. */
  starsOf(id) {
    return this.get(id)?.stars ?? 0;
  }

  /** 1 up, -1 down, 0 where I have not rated, or right in the middle. */
  thumbOf(id) {
    return thumbOf(this.get(id)?.rating);
  }

  /** One page of a collection, newest first: {ids, next}. */
  async page(collection, cursor, limit) {
    const { items, next } = await fetchImages(collection, { cursor, limit });
    return { ids: this.learn(items), next };
  }

  /** Takes in pictures as the server lists them; returns their ids. */
  learn(items) {
    for (const item of items) this.#learn(item);
    return items.map((item) => item.id);
  }

  /** Forgets a picture that was deleted. */
  forget(id) {
    this.#pictures.delete(id);
    this.dispatchEvent(new CustomEvent("forget", { detail: { id } }));
  }

  /** Makes sure that these pictures are known; those that were deleted meanwhile stay unknown. */
  async need(ids) {
    const unknown = ids.filter((id) => !this.#pictures.has(id));
    const found = await Promise.all(unknown.map((id) => fetchImage(id).catch(nullIfGone)));
    this.learn(found.filter(Boolean));
  }

  /** Says that one picture alone is on show from now on (or none), so that it is known how long a rating took. */
  seen(id) {
    this.#onShow = { id, since: performance.now() };
  }

  #leadTime(id) {
    return id === this.#onShow.id ? secondsSince(this.#onShow.since) : undefined;
  }

  #learn(item) {
    if (this.#queues.has(item.id)) return; // A write of mine is under way: it knows better.
    const stored = myRating(item.ratings);
    this.#pictures.set(item.id, { ...item, stored });
    this.#show(item.id, stored);
  }

  #show(id, rating) {
    Object.assign(this.get(id), { rating, stars: starsOf(rating) });
    this.dispatchEvent(new CustomEvent("change", { detail: { id } }));
  }

  /** Shows `stars` at once and stores them; the same number again clears. Rejects, having rolled back, on failure. */
  rate(id, stars) {
    return this.#rate(id, this.starsOf(id) === stars ? null : { value: stars, scale: STAR_SCALE });
  }

  /** The same with a thumb, 1 or -1. */
  thumb(id, thumb) {
    return this.#rate(id, this.thumbOf(id) === thumb ? null : { value: Number(thumb > 0), scale: THUMB_SCALE });
  }

  #rate(id, wanted) {
    const picture = this.get(id);
    const leadTime = this.#leadTime(id);
    this.#show(id, wanted);
    // One write after another for each picture: 3 then 5 must not arrive as 5 then 3.
    const turn = (this.#queues.get(id) ?? Promise.resolve()).catch(() => {}).then(() => this.#store(picture, wanted, leadTime));
    this.#queues.set(id, turn);
    return said.track(turn.finally(() => this.#settle(id, picture, turn)));
  }

  async #store(picture, wanted, leadTime) {
    const before = picture.stored;
    if (same(wanted, before)) return;
    if (wanted) picture.stored = { ...wanted, id: await postRating(picture.id, wanted, leadTime) };
    else {
      await clearRating(before.id);
      picture.stored = null;
    }
    const given = picture.stored?.id;
    said.note(inWords(wanted), [picture.id], () => (given ? this.#takeBack(picture.id, given) : this.#giveAgain(picture.id, before)));
  }

  async #takeBack(id, judgement) {
    await takeBack(judgement);
    this.learn([await fetchImage(id)]);
  }

  async #giveAgain(id, rating) {
    await postRating(id, rating);
    this.learn([await fetchImage(id)]);
  }

  #settle(id, picture, turn) {
    if (this.#queues.get(id) !== turn) return; // A later click waits: it decides what is shown.
    this.#queues.delete(id);
    this.#show(id, picture.stored);
  }
}

export const pictures = new Pictures();

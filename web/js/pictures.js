// What this page knows of captured pictures and of my stars on them. All widgets look at the same ones, so that two
// nodes, or a node and the full view, never disagree. A rating is shown at once and taken back if it was not stored.
import { clearRating, fetchImage, fetchImages, postStars } from "./feedback_api.js";
import { currentRater } from "./settings.js";

const AXIS = "overall";

function myRating(ratings) {
  const mine = (ratings ?? []).filter((rating) => rating.axis === AXIS && rating.rater === currentRater());
  const latest = mine.at(-1);
  return latest ? { id: latest.id, stars: Math.round(latest.value) } : null;
}

class Pictures extends EventTarget {
  #pictures = new Map();
  #queues = new Map();

  get(id) {
    return this.#pictures.get(id);
  }

  starsOf(id) {
    return this.get(id)?.stars ?? 0;
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

  /** Makes sure that these pictures are known. */
  async need(ids) {
    const unknown = ids.filter((id) => !this.#pictures.has(id));
    for (const item of await Promise.all(unknown.map(fetchImage))) this.#learn(item);
  }

  #learn(item) {
    if (this.#queues.has(item.id)) return; // A write of mine is under way: it knows better.
    const stored = myRating(item.ratings);
    this.#pictures.set(item.id, { ...item, stored, stars: stored?.stars ?? 0 });
    this.#changed(item.id);
  }

  #changed(id) {
    this.dispatchEvent(new CustomEvent("change", { detail: { id } }));
  }

  /** Shows `stars` at once and stores them; the same number again clears. Rejects, having rolled back, on failure. */
  rate(id, stars) {
    const picture = this.get(id);
    picture.stars = picture.stars === stars ? 0 : stars;
    const wanted = picture.stars;
    this.#changed(id);
    // One write after another for each picture: 3 then 5 must not arrive as 5 then 3.
    const turn = (this.#queues.get(id) ?? Promise.resolve()).catch(() => {}).then(() => this.#store(picture, wanted));
    this.#queues.set(id, turn);
    return turn.finally(() => this.#settle(id, picture, turn));
  }

  async #store(picture, wanted) {
    if (wanted === (picture.stored?.stars ?? 0)) return;
    if (wanted) {
      const { id } = await postStars(picture.id, wanted, currentRater());
      picture.stored = { id, stars: wanted };
    } else {
      await clearRating(picture.stored.id);
      picture.stored = null;
    }
  }

  #settle(id, picture, turn) {
    if (this.#queues.get(id) !== turn) return; // A later click waits: it decides what is shown.
    this.#queues.delete(id);
    picture.stars = picture.stored?.stars ?? 0;
    this.#changed(id);
  }
}

export const pictures = new Pictures();

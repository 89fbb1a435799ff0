// What this page knows of what was said of pictures besides ratings: regions, words of the prompt, tags, comments, and
// the comparisons and rankings that a picture is in. It is shown at once and taken back if it was not stored.
import { fetchMarks, POST, takeBack } from "./judgement_api.js";
import { said } from "./said.js";
import { currentRater } from "./settings.js";

const ON_ONE_PICTURE = ["regions", "word_marks", "tags", "comments"];
const KINDS = [...ON_ONE_PICTURE, "comparisons", "rankings"];
const READ_AT_ONCE = 3;
const nothing = () => Object.fromEntries(KINDS.map((kind) => [kind, []]));

export const isMine = (mark) => mark.rater === currentRater();
const picturesOf = (mark) => mark.image_ids ?? (mark.left ? [mark.left, mark.right] : [mark.image_id]);

/** What was said, without what the store and this page added to it. */
function contentOf({ id: _id, rater: _rater, created_at: _at, stored: _stored, ...content }) {
  return content;
}

class Marks extends EventTarget {
  #known = new Map();
  #waiting = [];
  #reading = 0;

  /** What is known by now; `need` makes sure that something is. */
  of(id) {
    return this.#known.get(id) ?? nothing();
  }

  /** How many marks the picture itself has. */
  count(id) {
    return ON_ONE_PICTURE.reduce((sum, kind) => sum + this.of(id)[kind].length, 0);
  }

  /** Reads the marks of a picture; what is being written stays. */
  async need(id) {
    const stored = await fetchMarks(id);
    const known = this.of(id);
    const merged = nothing();
    for (const kind of KINDS) {
      const writing = known[kind].filter((mark) => mark.id === undefined);
      const place = ON_ONE_PICTURE.includes(kind) && { image_id: id }; // The list of one picture does not name it.
      merged[kind] = [...stored[kind].map((mark) => ({ ...place, ...mark })), ...writing];
    }
    this.#known.set(id, merged);
    this.#changed(id);
  }

  /** Reads the marks of a picture that came into view, unless they are known or `again`; a few pictures at a time. */
  glance(id, again = false) {
    if ((this.#known.has(id) && !again) || this.#waiting.includes(id)) return;
    this.#known.set(id, this.of(id));
    this.#waiting.push(id);
    if (this.#reading < READ_AT_ONCE) this.#readOn();
  }

  async #readOn() {
    this.#reading += 1;
    for (let id = this.#waiting.shift(); id; id = this.#waiting.shift()) {
      // What a card shows beside its stars is no reason to bother anybody; the large view asks again, and says why.
      await this.need(id).catch((error) => console.warn("The marks of a picture could not be read:", error.message));
    }
    this.#reading -= 1;
  }

  /** Shows and stores a mark of a picture. Rejects, having rolled back, on failure. */
  add(imageId, kind, content, words) {
    return this.change(kind, { add: [{ image_id: imageId, ...content }] }, words);
  }

  remove(kind, mark, words) {
    return this.change(kind, { remove: [mark] }, words);
  }

  /** Replaces marks of mine by others, in one step for the undo. `words` say what was done. */
  change(kind, { add = [], remove = [] }, words) {
    const added = add.map((content) => ({ ...content, rater: currentRater() }));
    this.#put(kind, added, remove);
    const writing = this.#store(kind, added, remove, words);
    for (const mark of added) mark.stored = writing;
    return said.track(writing);
  }

  async #store(kind, added, removed, words) {
    const ids = [...new Set([...added, ...removed].flatMap(picturesOf))];
    try {
      await this.#write(kind, added, removed);
    } catch (error) {
      this.#put(kind, [], added);
      this.#put(kind, removed, []);
      throw error;
    }
    for (const id of ids) this.#changed(id);
    said.note(words, ids, () => this.#undo(kind, added, removed));
  }

  async #undo(kind, added, removed) {
    const again = removed.map((mark) => ({ ...contentOf(mark), rater: mark.rater }));
    await this.#write(kind, again, added);
    this.#put(kind, again, added);
  }

  /** The new first: if the connection breaks in between, nothing that was said is missing. */
  async #write(kind, added, removed) {
    for (const mark of added) mark.id = await POST[kind](contentOf(mark));
    for (const mark of removed) {
      await mark.stored; // Where it is still under way, it has no id yet.
      await takeBack(mark.id);
    }
  }

  #put(kind, added, removed) {
    const ids = new Set([...added, ...removed].flatMap(picturesOf));
    const gone = (mark) => removed.some((other) => other === mark || (mark.id && other.id === mark.id));
    for (const id of ids) {
      const kept = this.of(id)[kind].filter((mark) => !gone(mark));
      const here = added.filter((mark) => picturesOf(mark).includes(id));
      this.#known.set(id, { ...this.of(id), [kind]: [...kept, ...here] });
      this.#changed(id);
    }
  }

  #changed(id) {
    this.dispatchEvent(new CustomEvent("change", { detail: { id } }));
  }
}

export const marks = new Marks();

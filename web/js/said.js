// What was said on this page, so that the last can be taken back. The server keeps both: what was said, and that it was
// taken back.
// Somebody else took it back, or deleted the picture: trying again would not help.
const GONE = new Set([404, 409]);

class Said extends EventTarget {
  #entries = [];
  #writing = new Set();

  /** Notes what was stored. `ids`: the pictures it was about; `undo()` takes it back on the server and in the views. */
  note(words, ids, undo) {
    this.#entries.push({ words, ids, undo });
    this.dispatchEvent(new CustomEvent("said"));
  }

  /** Lets `undo` wait for a write that is under way, so that it never takes back the one before. */
  track(promise) {
    this.#writing.add(promise);
    const over = () => this.#writing.delete(promise);
    promise.then(over, over);
    return promise;
  }

  get last() {
    return this.#entries.at(-1);
  }

  /** Takes back what was said last; resolves with {words, ids}, or null if there is nothing. */
  async undo() {
    await Promise.allSettled(this.#writing);
    const entry = this.#entries.pop();
    if (!entry) return null;
    try {
      await this.track(entry.undo());
    } catch (error) {
      if (!GONE.has(error.status)) this.#entries.push(entry);
      throw error;
    }
    this.dispatchEvent(new CustomEvent("undone", { detail: entry }));
    return entry;
  }
}

export const said = new Said();

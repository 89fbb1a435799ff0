// The runs that wait for a person, as the server lists them. Nothing of a wait lives in this page: after a reload, or
// in another tab, the same is asked, and what was answered elsewhere disappears.
import { api } from "../../../scripts/api.js";
import { answerOf, BASE, write } from "./feedback_api.js";
import { takeBack } from "./judgement_api.js";
import { marks } from "./marks.js";
import { said } from "./said.js";
import { currentRater } from "./settings.js";
import { send } from "./team.js";

const EVENT = "feedback_loop.gates";
const AGAIN = 5000; // ms, while something waits: catches up with what a broken connection lost

class Gates extends EventTarget {
  #gates = [];
  #turn = 0;
  #timer = null;

  /** Begins to listen; called once, by the extension. */
  start() {
    const read = () => this.read();
    for (const event of [EVENT, "reconnected"]) api.addEventListener(event, read);
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && read());
    read();
  }

  /** What waits, in the order in which it began; `until` is a time of performance.now(), or null. */
  get all() {
    return this.#gates;
  }

  async read() {
    const turn = ++this.#turn;
    clearTimeout(this.#timer);
    try {
      const { gates } = await answerOf(await send(`${BASE}/gates`));
      if (turn !== this.#turn) return;
      const now = performance.now();
      const until = ({ seconds_left: left }) => (left === null ? null : now + left * 1000);
      this.#gates = gates.map((gate) => ({ ...gate, until: until(gate) }));
    } catch (error) {
      if (turn !== this.#turn) return;
      console.warn("Feedback Loop: what waits could not be read.", error.message);
    }
    if (this.#gates.length) this.#timer = setTimeout(() => this.read(), AGAIN);
    this.dispatchEvent(new CustomEvent("change"));
  }

  /** Resolves once the answer is stored; rejects when another was faster, or time was up. `words` say what it is. */
  async answer(gate, content, words) {
    try {
      const path = `/gates/${encodeURIComponent(gate.key)}`;
      const { judgements } = await write("POST", path, { rater: currentRater(), ...content });
      if (judgements.length) said.note(words, gate.images, () => takeAllBack(judgements, gate.images));
      this.answered = judgements.length ? { key: gate.key, said: said.last } : null;
      this.#gates = this.#gates.filter(({ key }) => key !== gate.key);
    } finally {
      await this.read();
    }
  }
}

/** What was said stands no longer; the run has gone on with it all the same. */
async function takeAllBack(judgements, images) {
  for (const id of judgements) await takeBack(id);
  for (const id of images) marks.glance(id, true);
}

export const gates = new Gates();

// Click the best of a few pictures: it is stored as better than each of the others.
import { element } from "./dom.js";
import { GroupView } from "./group_view.js";
import { isMine, marks } from "./marks.js";
import { AXIS } from "./judgement_api.js";
import { complain } from "./settings.js";

const between = (one, other) => (mark) =>
  isMine(mark) && mark.axis === AXIS && ((mark.left === one && mark.right === other) || (mark.left === other && mark.right === one));
const winnerOf = (comparison) => comparison?.[comparison.winner];

/** My comparisons of `id` with the others of the group, the latest of each pair. */
const latest = (id, group) =>
  group.filter((other) => other !== id).map((other) => marks.of(id).comparisons.filter(between(id, other)).at(-1));

/** The picture that I found better than every other of the group, or undefined. */
export const bestOf = (group) => group.find((id) => latest(id, group).every((comparison) => winnerOf(comparison) === id));

/** Stores that `best` is better than every other; what made another the best is taken back. */
export function pickBest(group, best, words) {
  const before = bestOf(group);
  const remove = before ? latest(before, group) : [];
  const add = group.filter((id) => id !== best).map((id) => {
    // The picture that stood before the other is the left one.
    const [left, right] = group.indexOf(best) < group.indexOf(id) ? [best, id] : [id, best];
    return { left, right, winner: left === best ? "left" : "right", axis: AXIS, policy: "pick_best" };
  });
  return marks.change("comparisons", { add: before === best ? [] : add, remove }, words);
}

export class PickBest extends GroupView {
  async choose(id) {
    const { group } = this;
    const cleared = bestOf(group) === id;
    const writing = pickBest(group, id, cleared ? "no best picture" : `picture ${this.numberOf(id)} is the best`);
    this.showGroup();
    try {
      if (!cleared) this.advance();
      await writing;
    } catch (error) {
      complain("The choice was not stored", error);
      this.showGroup();
    }
  }

  isDone(group) {
    return Boolean(bestOf(group));
  }

  isGiven(id) {
    return Boolean(this.group?.includes(id)) && bestOf(this.group) === id;
  }

  placeInWords(id) {
    return this.isGiven(id) ? "the best" : "not picked";
  }

  showPlace(id, button) {
    const best = this.isGiven(id);
    const number = this.group?.includes(id) ? this.numberOf(id) : "";
    button.replaceChildren(element("kbd", { text: String(number) }), best ? "Best" : "Pick");
    button.setAttribute("aria-pressed", best);
    button.setAttribute("aria-label", best ? `Picture ${number} is the best; take that back` : `Picture ${number} is the best`);
  }

  showHint() {
    const picked = this.group && bestOf(this.group);
    this.hint.textContent = picked ? `Picture ${this.numberOf(picked)} is the best.` : "Click the best one, or press its number.";
  }
}

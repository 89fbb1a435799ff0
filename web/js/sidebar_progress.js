// How far the ratings have come: a counter towards a usable reward, and how well the latest reward guesses, beside how
// well the rater agrees with themselves, which no model can beat by much.
import { element } from "./dom.js";
import { currentRater } from "./settings.js";

const percent = (fraction) => `${Math.round(fraction * 100)} %`;
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** {given, needed} of judgements towards a first usable reward, or null while the server does not say. */
function wayToGo(stats) {
  if (!known(stats.ratings_needed)) return null;
  const given = stats.ratings + stats.comparisons;
  return { given, needed: given + stats.ratings_needed };
}

function fact(name, value, explanation) {
  return [element("dt", { text: name, title: explanation }), element("dd", { text: value, title: explanation })];
}

function factsOfReward(stats) {
  const facts = [];
  const { held_out_accuracy: accuracy, beats_chance: beats, self_agreement: agreement, bound } = stats;
  const guess = known(accuracy) ? `picks the better one in ${percent(accuracy)}` : "none trained yet";
  facts.push(
    ...fact(
      "Latest reward",
      known(accuracy) && !beats ? `${guess}, no better than a coin so far` : guess,
      "Of pairs of pictures that it did not learn from. A coin reaches 50 %.",
    ),
    ...fact(
      "People, asked twice",
      known(agreement) ? `say the same in ${percent(agreement)}` : "not known yet: compare more pairs",
      "Of the pairs that came back with their sides swapped.",
    ),
  );
  if (known(bound)) facts.push(...fact("So at most", percent(bound), "No model can agree with single answers more often than this."));
  return facts;
}

function factsOfRater(reliability) {
  const mine = (reliability ?? []).find((one) => one.rater === currentRater());
  if (!mine) return [];
  const facts = [];
  if (known(mine.left_share)) {
    const [low, high] = mine.left_interval ?? [];
    const range = known(low) ? ` (${percent(low)} – ${percent(high)})` : "";
    facts.push(...fact("You pick left", `${percent(mine.left_share)}${range}`, "Sides are random: far from 50 % is a habit."));
  }
  if (known(mine.median_seconds)) facts.push(...fact("Your pace", `${mine.median_seconds.toFixed(1)} s each`, "Median time for one answer."));
  return facts;
}

export class Progress {
  constructor() {
    this.meter = element("progress", { className: "fl-meter", "aria-label": "Towards a usable reward" });
    this.line = element("p", { className: "fl-progress-line", role: "status" });
    this.element = element("div", { className: "fl-progress", hidden: "" }, this.line, this.meter);
    this.facts = element("dl", { className: "fl-facts" });
  }

  show(stats) {
    const way = wayToGo(stats);
    this.element.hidden = !way;
    if (way) this.#showWay(way);
    this.facts.replaceChildren(...factsOfReward(stats), ...factsOfRater(stats.reliability));
  }

  #showWay({ given, needed }) {
    this.meter.max = Math.max(needed, 1);
    this.meter.value = given;
    const missing = needed - given;
    this.line.textContent = missing > 0 ? `${given} judgements; ${missing} more for a usable reward` : `${given} judgements: enough for a reward`;
  }
}

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

/** What the agreement `a` of somebody with themselves leaves for any model against single answers of theirs. */
const boundOf = (a) => (1 + Math.sqrt(Math.max(2 * a - 1, 0))) / 2;

function factsOfReward({ held_out_accuracy: accuracy, beats_chance: beats }) {
  const guess = known(accuracy) ? `picks the better one in ${percent(accuracy)}` : "none trained yet";
  const value = known(accuracy) && !beats ? `${guess}, no better than a coin so far` : guess;
  return fact("Latest reward", value, "Of pairs of pictures that it did not learn from. A coin reaches 50 %.");
}

function factsOfAgreement(stats) {
  const mine = (stats.reliability ?? []).find((one) => one.rater === currentRater() && known(one.self_agreement));
  const agreement = mine?.self_agreement ?? stats.self_agreement;
  const who = mine || !known(agreement) ? "You, asked twice" : "People, asked twice";
  const times = mine ? `, ${mine.repeats} time${mine.repeats === 1 ? "" : "s"}` : "";
  const value = known(agreement) ? `say the same in ${percent(agreement)}${times}` : "not known yet: compare more pairs";
  const facts = fact(who, value, "Of the pairs that came back with their sides exchanged.");
  if (!known(agreement)) return facts;
  return [...facts, ...fact("So at most", percent(boundOf(agreement)), "No model can agree with single answers more often.")];
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

function factsOfOutbox({ waiting }) {
  if (!waiting) return [];
  const words = `${waiting} judgement${waiting === 1 ? "" : "s"}, kept on the server's disk`;
  return fact("Waiting for the database", words, "They are sent once the database server answers again.");
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
    this.facts.replaceChildren(...factsOfOutbox(stats), ...factsOfReward(stats), ...factsOfAgreement(stats), ...factsOfRater(stats.reliability));
  }

  #showWay({ given, needed }) {
    this.meter.max = Math.max(needed, 1);
    this.meter.value = given;
    const missing = needed - given;
    this.line.textContent = missing > 0 ? `${given} judgements; ${missing} more for a usable reward` : `${given} judgements: enough for a reward`;
  }
}

// Our keys are ComfyUI commands, so that people can remap them in the keybinding settings. ComfyUI runs a binding only
// when the focus is inside the element whose id it names; the one element that has our keys carries that id.
import { MAX_STARS } from "./stars.js";

const KEY_TARGET = "feedback-loop-keys";
const MAX_PLACES = 9;
let owner = null;

/**
 * From now on our keys act on `container`, as long as the focus is inside: 1 to 5 call `rate(number)`, everything else
 * the function in `actions` that bears its name. `actions.pick(number)` takes 1 to 9 instead of `rate`.
 */
export function takeKeys(container, rate, actions = {}) {
  document.getElementById(KEY_TARGET)?.removeAttribute("id");
  container.id = KEY_TARGET;
  owner = { container, actions: { pick: (number) => number <= MAX_STARS && rate(number), ...actions } };
}

function act(action, ...values) {
  // A remapped binding has no target element, so look once more where the focus is.
  if (owner?.container.contains(document.activeElement)) owner.actions[action]?.(...values);
}

/** Buttons and fields keep the keys that they understand themselves: ComfyUI would take them for our commands. */
export function keepNativeKeys(event) {
  const target = event.target.closest("button, input, textarea, select, summary, a");
  const pressed = event.key === "Enter" || event.key === " ";
  const field = target?.matches("input, textarea, select");
  if (target && !event.ctrlKey && !event.metaKey && (pressed || (field && event.key !== "Escape"))) event.stopPropagation();
}

const MOVES = [
  ["Left", "ArrowLeft", "left", "pi-arrow-left", "The left picture is better, or: to the picture on the left"],
  ["Right", "ArrowRight", "right", "pi-arrow-right", "The right picture is better, or: to the picture on the right"],
  ["Up", "ArrowUp", "up", "pi-arrow-up", "Both are bad, or: to the picture above"],
  ["Down", "ArrowDown", "down", "pi-arrow-down", "Can't tell which is better, or: to the picture below"],
  ["Back", "b", "back", "pi-step-backward", "Back to the pair or picture before"],
  ["Zoom", " ", "zoom", "pi-search-plus", "Show the focused picture large, or small again"],
  ["Accept", "Enter", "accept", "pi-check", "Take the focused picture as the best, or as the next in order"],
  ["Undo", "u", "undo", "pi-undo", "Take back what I said last"],
  ["Comment", "t", "comment", "pi-comment", "Write about the picture"],
];

const numbers = Array.from({ length: MAX_PLACES }, (_, index) => index + 1);
const numberLabel = (number) =>
  number <= MAX_STARS
    ? `Rate the focused picture: ${number} of ${MAX_STARS} stars, or take picture ${number}`
    : `Take picture ${number}`;

const rates = numbers.map((number) => ({
  command: {
    id: `FeedbackLoop.Rate${number}`,
    label: numberLabel(number),
    icon: "pi pi-star",
    function: () => act("pick", number),
  },
  key: String(number),
}));

const moves = MOVES.map(([name, key, action, icon, label]) => ({
  command: { id: `FeedbackLoop.${name}`, label: `Feedback: ${label}`, icon: `pi ${icon}`, function: () => act(action) },
  key,
}));

export const commands = [...rates, ...moves].map(({ command }) => command);

export const keybindings = [...rates, ...moves].map(({ command, key }) => ({
  combo: { key },
  commandId: command.id,
  targetElementId: KEY_TARGET,
}));

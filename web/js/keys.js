// Keys 1 to 5 are ComfyUI commands, so that people can remap them in the keybinding settings. ComfyUI runs a binding
// only when the focus is inside the element whose id it names; the one element that has our keys carries that id.
import { MAX_STARS } from "./stars.js";

const KEY_TARGET = "feedback-loop-keys";
let owner = null;

/** From now on the keys rate whatever `rate(stars)` rates, as long as the focus is inside `container`. */
export function takeKeys(container, rate) {
  document.getElementById(KEY_TARGET)?.removeAttribute("id");
  container.id = KEY_TARGET;
  owner = { container, rate };
}

function rateFocused(stars) {
  // A remapped binding has no target element, so look once more where the focus is.
  if (owner?.container.contains(document.activeElement)) owner.rate(stars);
}

const numbers = Array.from({ length: MAX_STARS }, (_, index) => index + 1);
const commandId = (stars) => `FeedbackLoop.Rate${stars}`;

export const commands = numbers.map((stars) => ({
  id: commandId(stars),
  label: `Rate the focused picture: ${stars} of ${MAX_STARS} stars`,
  icon: "pi pi-star",
  function: () => rateFocused(stars),
}));

export const keybindings = numbers.map((stars) => ({
  combo: { key: String(stars) },
  commandId: commandId(stars),
  targetElementId: KEY_TARGET,
}));

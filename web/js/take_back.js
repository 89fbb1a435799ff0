// Undo as every view shows it: takes back what was said last and says so in a line of text.
import { said } from "./said.js";
import { complain } from "./settings.js";

/** Resolves with {words, ids}, or null if there was nothing or it failed; `line` is the element that says what was done. */
export async function takeBack(line) {
  try {
    const undone = await said.undo();
    line.textContent = undone ? `Took back: ${undone.words}` : "Nothing to take back";
    return undone;
  } catch (error) {
    complain("It could not be taken back", error);
    return null;
  }
}

// What waits, over the whole page: for a node inside a subgraph, of another workflow, or far away on the canvas. A button
// at the bottom of the window opens it as long as something waits.
import { element } from "./dom.js";
import { gates } from "./gate_list.js";
import { GateView } from "./gate_view.js";

let dialog = null;
const pill = element("button", { className: "fl-gate-pill", type: "button", title: "Answer (Alt+G)", on: { click: openGates } });

/** @param titleOf (gate) -> what to call its node */
export function showPill(titleOf) {
  pill.titleOf = titleOf;
  pill.hidden = true;
  document.body.append(element("div", { className: "fl-gate-corner", role: "status" }, pill));
  gates.addEventListener("change", refresh);
  refresh();
}

function refresh() {
  const { all } = gates;
  pill.hidden = !all.length || dialog !== null;
  pill.textContent = all.length > 1 ? `${all.length} questions wait for you` : "A run waits for you";
  if (dialog && !all.length) dialog.close();
  else if (dialog) dialog.heading.textContent = pill.titleOf(all[0]);
}

export function openGates() {
  if (dialog || !gates.all.length) return;
  const view = new GateView(() => gates.all);
  const close = { className: "fl-button fl-close", type: "button", text: "Close", title: "Close (Escape); the run waits on" };
  const heading = element("h2", { className: "fl-gate-heading" });
  const head = element("div", { className: "fl-bar" }, heading, element("button", { ...close, on: { click: () => dialog.close() } }));
  const on = { keydown: closeOnEscape, close: () => closed(view) };
  dialog = element("dialog", { className: "fl-full fl-gate-dialog", "aria-label": "A run waits for you", on }, head, view.element);
  dialog.heading = heading;
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  refresh();
  pictureFocus(view);
}

/** The pictures may still be on their way. */
function pictureFocus(view, tries = 20) {
  view.focus();
  if (tries && dialog && !view.grid.element.contains(document.activeElement)) setTimeout(() => pictureFocus(view, tries - 1), 100);
}

function closeOnEscape(event) {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  dialog.close(); // ComfyUI binds Escape and would prevent the dialog's own closing.
  event.preventDefault();
  event.stopPropagation();
}

function closed(view) {
  view.remove();
  dialog.remove();
  dialog = null;
  refresh();
}

// What a node says of its run, shown in the node: ComfyUI hands every node its texts, but draws none of them itself.
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { after } from "./node_view.js";

const OURS = /^Feedback/;
const LINE = 17; // pixels
const [LEAST, MOST] = [2 * LINE, 12 * LINE]; // more than that is scrolled
const LETTER = 6.5; // pixels, on average

/** About how high the text stands in a node of this width. */
function heightOf(text, width) {
  const inLine = Math.max(20, (width - 40) / LETTER);
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / inLine)), 0);
  return Math.min(MOST, Math.max(LEAST, lines * LINE)) + 12;
}

/** The element for a node's report, made with the first one: before that the node is as it always was. */
function addReport(node) {
  const shown = element("div", { className: "fl-report", role: "status", tabindex: 0, "aria-label": "Report of the run" });
  const room = { height: LEAST };
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => room.height };
  const widget = node.addDOMWidget("report", "feedback_report", shown, options);
  widget.serialize = false; // neither the prompt (options) nor the saved workflow has a value of it
  return (text) => {
    shown.textContent = text;
    const before = room.height;
    room.height = heightOf(text, node.size[0]);
    const more = shown.dataset.shown ? room.height - before : room.height;
    shown.dataset.shown = "yes";
    if (more > 0) node.setSize([node.size[0], node.size[1] + more]);
    node.setDirtyCanvas?.(true, true);
  };
}

app.registerExtension({
  name: "FeedbackLoop.Report",
  nodeCreated(node) {
    if (!OURS.test(node.comfyClass ?? "")) return;
    let show = null;
    after(node, "onExecuted", (output) => {
      const text = (output?.text ?? []).join("\n");
      if (!text) return;
      show ??= addReport(node);
      show(text);
    });
  },
});

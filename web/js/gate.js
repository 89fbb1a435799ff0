// Registers FeedbackGate with ComfyUI's frontend: the question inside the node, and the button that shows it large.
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { openGates, showPill } from "./gate_dialog.js";
import { gates } from "./gate_list.js";
import { GateView } from "./gate_view.js";
import { nodeAt } from "./node_place.js";
import { addView, after } from "./node_view.js";

const NODE = "FeedbackGate";
const ASKING = [NODE, "FeedbackReinforceLora"]; // whose waits are called by their node's title
const VIEW = { name: "question", type: "feedback_gate", size: [420, 720], minHeight: 260 };

const stylesheet = new URL("./gate.css", import.meta.url).href;
document.head.append(element("link", { rel: "stylesheet", href: stylesheet }));

/** The node of this page's workflow that a wait belongs to, or undefined. */
function nodeOf({ node_id: executionId, workflow_id: workflow }) {
  const root = app.rootGraph ?? app.graph;
  if (!root || (workflow && root.id && workflow !== root.id)) return undefined;
  const node = nodeAt(executionId);
  return ASKING.includes(node?.comfyClass) ? node : undefined;
}

const titleOf = (gate) => nodeOf(gate)?.title ?? `Node ${gate.node_id} of another workflow`;

function addGateView(node) {
  const view = new GateView(() => gates.all.filter((gate) => nodeOf(gate) === node));
  addView(node, view, VIEW);
  // Only now is it known which node of which workflow this is.
  after(node, "onConfigure", () => view.show());
  after(node, "onAdded", () => view.show());
  after(node, "onExecuted", (output) => view.showEnd(output.feedback_gate ?? []));
}

app.registerExtension({
  name: "FeedbackLoop.Gate",
  commands: [
    {
      id: "FeedbackLoop.Gates",
      label: "Feedback: answer what waits",
      icon: "pi pi-question-circle",
      function: openGates,
    },
  ],
  setup() {
    showPill(titleOf);
    gates.start();
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addGateView(node);
  },
});

// On its own: where another pack binds this key already, ComfyUI refuses the extension that comes second.
try {
  const keybindings = [{ combo: { key: "g", alt: true }, commandId: "FeedbackLoop.Gates" }];
  app.registerExtension({ name: "FeedbackLoop.GateKeys", keybindings });
} catch (error) {
  console.warn("Feedback Loop: Alt+G is not bound; set it under Settings, Keybinding.", error.message);
}

// Registers the pack with ComfyUI's frontend: the rating view on FeedbackCapture, its keys, its settings.
import { app } from "../../../scripts/app.js";
import { CaptureView } from "./capture_view.js";
import { element } from "./dom.js";
import { commands, keybindings } from "./keys.js";
import { addView, after } from "./node_view.js";
import { settings } from "./settings.js";
import { followZoom } from "./zoom.js";

const NODE = "FeedbackCapture";
const NEW_NODE_SIZE = [420, 640];
const MIN_HEIGHT = 260;
const MODE = "feedback_mode"; // in the node's properties, saved with the workflow

const stylesheet = new URL("./feedback_loop.css", import.meta.url).href;
document.head.append(element("link", { rel: "stylesheet", href: stylesheet }));

/** The collection that the last run stored into, or, before the first, the one that the widget names. */
function collectionOf(node) {
  return node.feedbackCollection ?? String(node.widgets.find((widget) => widget.name === "collection").value).trim();
}

function addCaptureView(node) {
  const mode = {
    get: () => node.properties[MODE],
    set: (value) => (node.properties[MODE] = value),
  };
  const view = new CaptureView(() => collectionOf(node), mode);
  addView(node, view, { name: "pictures", type: "feedback_pictures", size: NEW_NODE_SIZE, minHeight: MIN_HEIGHT });
  listenToNode(node, view);
}

function listenToNode(node, view) {
  const collection = node.widgets.find((widget) => widget.name === "collection");
  after(collection, "callback", () => {
    node.feedbackCollection = undefined;
    view.showRun([]);
  });
  after(node, "onExecuted", (output) => {
    node.feedbackCollection = output.feedback_collection?.[0];
    view.showRun(output.feedback_images ?? []);
  });
  after(node, "onConfigure", () => {
    view.setMode(node.properties[MODE]);
    view.refresh();
  });
  view.refresh();
}

app.registerExtension({
  name: "FeedbackLoop",
  settings,
  commands,
  setup: followZoom,
  nodeCreated(node) {
    if (node.comfyClass === NODE) addCaptureView(node);
  },
});

// On its own: where another pack binds one of these keys already, ComfyUI refuses the extension that comes second.
try {
  app.registerExtension({ name: "FeedbackLoop.Keys", keybindings });
} catch (error) {
  console.warn("Feedback Loop: not all keys are bound; set them under Settings, Keybinding.", error.message);
}

// Registers the pack with ComfyUI's frontend: the rating view on FeedbackCapture, its keys, its settings.
import { app } from "../../../scripts/app.js";
import { CaptureView } from "./capture_view.js";
import { element } from "./dom.js";
import { commands, keybindings } from "./keys.js";
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

// By node id, what the last removed node of that id showed.
const left = new Map();

/** Undo, like every loading, makes nodes anew under their old ids; the Vue renderer then goes on showing the element of
 * the node that is gone, so ours takes its place. */
function replaceWhatWasLeft(node, view) {
  const stale = left.get(node.id);
  if (stale?.isConnected && !view.element.isConnected) stale.replaceWith(view.element);
  left.delete(node.id);
}

function addCaptureView(node) {
  const mode = {
    get: () => node.properties[MODE],
    set: (value) => (node.properties[MODE] = value),
  };
  const view = new CaptureView(() => collectionOf(node), mode);
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => MIN_HEIGHT };
  const widget = node.addDOMWidget("pictures", "feedback_pictures", view.element, options);
  widget.serialize = false; // It holds nothing: neither the prompt (options) nor the saved workflow has a value of it.
  node.setSize([Math.max(node.size[0], NEW_NODE_SIZE[0]), Math.max(node.size[1], NEW_NODE_SIZE[1])]);
  listenToNode(node, view);
}

function listenToNode(node, view) {
  const after = (object, method, react) => {
    const original = object[method];
    object[method] = function (...args) {
      const result = original?.apply(this, args);
      react(...args);
      return result;
    };
  };
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
  after(node, "onAdded", () => replaceWhatWasLeft(node, view));
  after(node, "onRemoved", () => {
    left.set(node.id, view.element);
    view.remove();
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

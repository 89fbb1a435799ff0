// Shows in a Reward guidance node what its run does: the reward step by step, the estimate, and what is wrong.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { GuidanceView } from "./guidance_view.js";
import { nodeAt } from "./node_place.js";
import { addView } from "./node_view.js";

const NODE = "FeedbackRewardGuidance";
const EVENT = "feedback_loop.guidance";
const VIEW = { name: "run", type: "feedback_guidance", size: [340, 520], minHeight: 150 };

const stylesheet = new URL("./guidance.css", import.meta.url).href;
document.head.append(element("link", { rel: "stylesheet", href: stylesheet }));

const views = new WeakMap();

app.registerExtension({
  name: "FeedbackLoop.Guidance",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => views.get(nodeAt(detail.node))?.show(detail));
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const view = new GuidanceView();
    views.set(node, view);
    addView(node, view, VIEW);
  },
});

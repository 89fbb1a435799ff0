// Registers the sidebar "Feedback" with ComfyUI's frontend.
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { interactionSettings, startWatching } from "./sidebar_interactions.js";
import { SidebarView } from "./sidebar_view.js";

const stylesheet = new URL("./sidebar.css", import.meta.url).href;
document.head.append(element("link", { rel: "stylesheet", href: stylesheet }));

let view = null; // made when it is first opened, kept while it is closed: the place in the list stays

const tab = {
  id: "feedback-loop",
  icon: "pi pi-star",
  title: "Feedback",
  tooltip: "Feedback: rate and compare what was captured",
  type: "custom",
  render(container) {
    if (view?.element.parentElement === container) return; // the frontend calls this at each of its own renderings
    view ??= new SidebarView();
    container.classList.add("fl-side-host");
    container.replaceChildren(view.element);
    view.opened();
  },
};

app.registerExtension({
  name: "FeedbackLoop.Sidebar",
  settings: interactionSettings,
  setup() {
    app.extensionManager.registerSidebarTab(tab);
    startWatching();
  },
});

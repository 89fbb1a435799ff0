// A stored picture goes out again: as a file of the user's, or into the graph as the image of a Load Image node.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { answerOf, pictureUrl } from "./feedback_api.js";
import { record } from "./sidebar_interactions.js";
import { inputNameOf } from "./sidebar_observed.js";

const LOADER = "LoadImage";

/** The browser's own download of the lossless copy. */
export async function saveCopy(id) {
  const link = element("a", { href: pictureUrl(id), download: inputNameOf(id) });
  document.body.append(link);
  link.click();
  link.remove();
  await record({ kind: "saved", image_id: id });
}

/** Puts the picture into ComfyUI's input folder and into the selected Load Image node, or into a new one. */
export async function useInGraph(id) {
  const blob = await (await fetch(pictureUrl(id))).blob();
  const form = new FormData();
  form.append("image", new File([blob], inputNameOf(id), { type: "image/png" }));
  form.append("overwrite", "true");
  const { name } = await answerOf(await api.fetchApi("/upload/image", { method: "POST", body: form }));
  const node = selectedLoader() ?? newLoader();
  const widget = node.widgets.find((one) => one.name === "image");
  if (Array.isArray(widget.options?.values) && !widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
  node.setDirtyCanvas?.(true, true);
  return node;
}

const selectedLoader = () => Object.values(app.canvas.selected_nodes ?? {}).find((node) => node.comfyClass === LOADER);

function newLoader() {
  const node = window.LiteGraph.createNode(LOADER);
  const [left, top, width, height] = app.canvas.ds.visible_area;
  node.pos = [left + width / 2 - node.size[0] / 2, top + height / 2 - node.size[1] / 2];
  app.canvas.graph.add(node);
  app.canvas.selectNode?.(node);
  return node;
}

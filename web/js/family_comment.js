// What was said of a picture becomes the next round's comment: it is written into the nodes of the open graph that take
// one, and what stood there becomes an earlier comment.
import { app } from "../../../scripts/app.js";
import { fetchMarks } from "./judgement_api.js";
import { currentRater } from "./settings.js";

const TAKERS = ["FeedbackTextConditioning", "FeedbackRefineRegion"];

/** The newest comment of mine on a picture, or of anybody; without one, what I wrote on its marked places. Null for none. */
export async function commentOn(id) {
  const { comments, regions } = await fetchMarks(id);
  const mine = (said) => said.filter(({ rater }) => rater === currentRater());
  const latest = (mine(comments).at(-1) ?? comments.at(-1))?.text;
  const written = regions.filter(({ comment }) => comment?.trim());
  const places = (mine(written).length ? mine(written) : written).map(({ comment }) => comment.trim());
  return latest?.trim() || [...new Set(places)].join(", ") || null;
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const isLinked = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null) ?? false;

function takers() {
  const every = app.canvas.graph.nodes.filter((node) => TAKERS.includes(node.comfyClass));
  const selected = every.filter((node) => node.selected);
  return (selected.length ? selected : every).filter((node) => widgetOf(node, "comment") && !isLinked(node, "comment"));
}

function write(widget, text) {
  widget.value = text;
  widget.callback?.(text);
}

/** Writes the comment into the selected nodes that take one, or into all of the open graph; the nodes that it went into. */
export function sayInGraph(text) {
  const nodes = takers();
  for (const node of nodes) {
    const comment = widgetOf(node, "comment");
    const before = String(comment.value ?? "").trim();
    const earlier = isLinked(node, "earlier") ? null : widgetOf(node, "earlier");
    if (earlier && before && before !== text) write(earlier, [earlier.value.trim(), before.replaceAll("\n", ", ")].filter(Boolean).join("\n"));
    write(comment, text);
    node.setDirtyCanvas?.(true, true);
  }
  return nodes;
}

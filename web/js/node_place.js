// Which node of this page's workflow the server speaks of.
import { app } from "../../../scripts/app.js";

/** The node with an execution id, which leads through subgraphs ("12:3"), or undefined. */
export function nodeAt(executionId) {
  const ids = String(executionId).split(":");
  const root = app.rootGraph ?? app.graph;
  const graph = ids.slice(0, -1).reduce((inside, id) => inside?.getNodeById(id)?.subgraph, root);
  return graph?.getNodeById(ids.at(-1)) ?? undefined;
}

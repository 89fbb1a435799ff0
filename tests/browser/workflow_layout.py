"""Builds a workflow file with the real frontend: it makes the nodes, knows their sizes and writes its own format.

A workflow is groups in columns; a group is rows of nodes. Nothing overlaps, whatever size the frontend gives a node.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from playwright.sync_api import Page

NAMESPACE = uuid.UUID("6f0f2a52-7a0b-5a3c-9a67-0f4f4b1d7c11")


@dataclass(frozen=True)
class Node:
    """`inputs`: a text `key.output` of another node is a link if it starts with "@", anything else a widget's value."""

    key: str
    type: str
    inputs: dict[str, Any] = field(default_factory=dict)
    title: str | None = None
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Group:
    """Rows of nodes under a title. `column` 0, 1, ... from the left; groups of a column stand below each other."""

    title: str
    rows: list[list[Node]]
    column: int
    color: str = "#3f789e"


def note(key: str, text: str, size: tuple[int, int]) -> Node:
    """A text for people, in Markdown."""
    return Node(key, "MarkdownNote", {"": text}, title="Read me", size=size)


def build(page: Page, name: str, groups: list[Group]) -> dict[str, Any]:
    """The workflow in the frontend's own format, without what would change from one build to the next."""
    graph = page.evaluate(BUILD, [asdict(group) for group in groups])
    graph["id"] = str(uuid.uuid5(NAMESPACE, name))
    return graph


BUILD = """
async (groups) => {
  const GAP = 40, TITLE = LiteGraph.NODE_TITLE_HEIGHT, PAD = 24, HEAD = 56, BETWEEN = 60;
  const graph = app.graph;
  graph.clear();
  const nodes = {};
  for (const group of groups) for (const row of group.rows) for (const spec of row) {
    const node = LiteGraph.createNode(spec.type);
    if (!node) throw new Error(`There is no node ${spec.type}.`);
    graph.add(node);
    if (spec.title) node.title = spec.title;
    nodes[spec.key] = node;
    for (const [name, value] of Object.entries(spec.inputs)) {
      if (typeof value === "string" && value.startsWith("@")) continue;
      const widget = name ? node.widgets.find((w) => w.name === name) : node.widgets[0];
      if (!widget) throw new Error(`${spec.type} has no widget ${name}: ${node.widgets.map((w) => w.name)}`);
      widget.value = value;
      widget.callback?.(value, app.canvas, node);
    }
  }
  for (const group of groups) for (const row of group.rows) for (const spec of row) {
    for (const [name, value] of Object.entries(spec.inputs)) {
      if (typeof value !== "string" || !value.startsWith("@")) continue;
      const [key, output] = value.slice(1).split(".");
      const from = nodes[key], to = nodes[spec.key];
      const outputs = from.outputs.map((slot) => slot.name), inputs = to.inputs.map((slot) => slot.name);
      if (!outputs.includes(output)) throw new Error(`${key} has no output ${output}: ${outputs}`);
      if (!inputs.includes(name)) throw new Error(`${spec.key} has no input ${name}: ${inputs}`);
      if (!from.connect(outputs.indexOf(output), to, inputs.indexOf(name))) throw new Error(`${value} -> ${name}`);
    }
  }
  await new Promise((done) => setTimeout(done, 500));
  const size = (spec) => {
    const [wide, high] = nodes[spec.key].computeSize();
    return [Math.max(wide, spec.size[0], 260), Math.max(high, spec.size[1])];
  };
  const inColumn = (column) => groups.filter((group) => group.column === column);
  const rowWidth = (row) => row.reduce((sum, spec) => sum + size(spec)[0] + GAP, -GAP);
  let left = 0;
  for (let column = 0; inColumn(column).length; column++) {
    const inner = Math.max(...inColumn(column).flatMap((group) => group.rows.map(rowWidth)));
    let top = 0;
    for (const group of inColumn(column)) {
      let y = top + HEAD;
      for (const row of group.rows) {
        const spare = (inner - rowWidth(row)) / row.length; // Every row is as wide as the widest.
        let x = left + PAD, tallest = 0;
        for (const spec of row) {
          const node = nodes[spec.key], [wide, high] = size(spec);
          node.setSize([Math.round(wide + spare), Math.round(high)]);
          node.pos = [Math.round(x), Math.round(y + TITLE)];
          x += node.size[0] + GAP;
          tallest = Math.max(tallest, node.size[1] + TITLE);
        }
        y += tallest + GAP;
      }
      const box = new LiteGraph.LGraphGroup(group.title);
      box.color = group.color;
      box.pos = [left, top];
      box.size = [inner + 2 * PAD, y - GAP + PAD - top];
      graph.add(box);
      top = y - GAP + PAD + BETWEEN;
    }
    left += inner + 2 * PAD + BETWEEN;
  }
  const saved = graph.serialize();
  saved.extra = { ds: { scale: 0.8, offset: [60, 90] } };
  return JSON.parse(JSON.stringify(saved));
}
"""

// One view inside a node, as the node's only DOM widget, in the classic and in the Vue renderer.

// By node id, what the last removed node of that id showed.
const left = new Map();

/** Undo, like every loading, makes nodes anew under their old ids; the Vue renderer then goes on showing the element of
 * the node that is gone, so ours takes its place. */
function replaceWhatWasLeft(node, view) {
  const stale = left.get(node.id);
  if (stale?.isConnected && !view.element.isConnected) stale.replaceWith(view.element);
  left.delete(node.id);
}

/** Calls `react` after a method of `object`, with its arguments. */
export function after(object, method, react) {
  const original = object[method];
  object[method] = function (...args) {
    const result = original?.apply(this, args);
    react(...args);
    return result;
  };
}

/** @param view {element, remove()} */
export function addView(node, view, { name, type, size: [width, height], minHeight }) {
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => minHeight };
  const widget = node.addDOMWidget(name, type, view.element, options);
  widget.serialize = false; // It holds nothing: neither the prompt (options) nor the saved workflow has a value of it.
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  after(node, "onAdded", () => replaceWhatWasLeft(node, view));
  after(node, "onRemoved", () => {
    left.set(node.id, view.element);
    view.remove();
  });
}

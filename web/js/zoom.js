// On a canvas that is zoomed out, the text of a widget shrinks with its node. Ours grows against that, so that it stays
// readable: the stylesheet multiplies its size by --fl-zoom.
import { app } from "../../../scripts/app.js";

const COMFORTABLE = 0.9; // from this scale of the canvas on, nothing has to grow
const MOST = 1.6;

function follow(scale) {
  const zoom = Math.min(Math.max(COMFORTABLE / scale, 1), MOST);
  document.documentElement.style.setProperty("--fl-zoom", zoom.toFixed(1));
}

export function followZoom() {
  const { ds } = app.canvas;
  const original = ds.onChanged;
  ds.onChanged = function (scale, offset) {
    original?.call(this, scale, offset);
    follow(scale);
  };
  follow(ds.scale);
}

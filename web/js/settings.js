// The pack's settings, as they stand in ComfyUI's settings dialog.
import { app } from "../../../scripts/app.js";

const RATER = "FeedbackLoop.Rater";
const DEFAULT_RATER = "me";

export const settings = [
  {
    id: RATER,
    name: "Your name as a rater",
    tooltip: "Stored with every star that you give, so that several people can rate the same pictures.",
    category: ["Feedback Loop", "Rating", "Rater"],
    type: "text",
    defaultValue: DEFAULT_RATER,
  },
];

export const currentRater = () => String(app.extensionManager.setting.get(RATER) ?? "").trim() || DEFAULT_RATER;

export function complain(summary, error) {
  app.extensionManager.toast.add({ severity: "error", summary, detail: String(error?.message ?? error), life: 8000 });
}

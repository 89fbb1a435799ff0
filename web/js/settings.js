// The pack's settings, as they stand in ComfyUI's settings dialog.
import { app } from "../../../scripts/app.js";

const RATER = "FeedbackLoop.Rater";
const DEFAULT_RATER = "me";
const TAGS = "FeedbackLoop.Tags";
const DEFAULT_TAGS = "high quality, unwanted artifact";

export const settings = [
  {
    id: RATER,
    name: "Your name as a rater",
    tooltip: "Stored with every star that you give, so that several people can rate the same pictures.",
    category: ["Feedback Loop", "Rating", "Rater"],
    type: "text",
    defaultValue: DEFAULT_RATER,
  },
  {
    id: TAGS,
    name: "Tags to choose from, separated by commas",
    tooltip: "Offered in the large view. A tag that you type there is added here.",
    category: ["Feedback Loop", "Rating", "Tags"],
    type: "text",
    defaultValue: DEFAULT_TAGS,
  },
];

export const currentRater = () => String(app.extensionManager.setting.get(RATER) ?? "").trim() || DEFAULT_RATER;

export function ownTags() {
  const named = String(app.extensionManager.setting.get(TAGS) ?? DEFAULT_TAGS).split(",");
  return [...new Set(named.map((tag) => tag.trim()).filter(Boolean))];
}

/** From now on `tag` is offered for every picture. */
export function rememberTag(tag) {
  if (tag.includes(",") || ownTags().includes(tag)) return;
  app.extensionManager.setting.set(TAGS, [...ownTags(), tag].join(", "));
}

/** Tells views that lie over ComfyUI's messages what went wrong: "complaint" events with the sentence as detail. */
export const complaints = new EventTarget();

export function complain(summary, error) {
  complaints.dispatchEvent(new CustomEvent("complaint", { detail: `${summary}: ${error?.message ?? error}` }));
  app.extensionManager.toast.add({ severity: "error", summary, detail: String(error?.message ?? error), life: 8000 });
}

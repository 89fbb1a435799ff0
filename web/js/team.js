// In team mode every request carries the token of one member. It is kept in this browser alone, since ComfyUI's
// settings can be read by whoever reaches the server; the first request without one asks for it.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const TOKEN = "FeedbackLoop.Token";
const RATER = "FeedbackLoop.Rater";
const WHO = "/feedback_loop/v1/me";
const UNAUTHORIZED = 401;

const stored = () => localStorage.getItem(TOKEN);

function once(path, options = {}) {
  const token = stored();
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  return api.fetchApi(path, { ...options, headers });
}

const POLL_MS = 200;

let asking = null; // many requests are refused at once, and one question is enough

const isOpen = () => Boolean(app.extensionManager?.workflow?.activeWorkflow);

/** ComfyUI waits for every extension to be set up, and can show no question before that. */
async function askOnceOpen() {
  while (!isOpen()) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  return ask();
}

/** Our routes as `api.fetchApi` asks them, with the member's token where there is one. */
export async function send(path, options) {
  const used = stored();
  const response = await once(path, options);
  if (response.status !== UNAUTHORIZED) return response;
  if (stored() === used) {
    asking ??= askOnceOpen().finally(() => (asking = null));
    if (!isOpen() || !(await asking)) return response;
  }
  return once(path, options);
}

/** Asks for the token; resolves with whether it is one that the server knows. */
async function ask() {
  const message = "This ComfyUI is shared by a team. Enter your token; whoever runs the server makes one for you.";
  const given = await app.extensionManager.dialog.prompt({ title: "Feedback Loop", message, defaultValue: "" });
  if (!given?.trim()) return false;
  localStorage.setItem(TOKEN, given.trim());
  const response = await once(WHO);
  if (!response.ok) {
    localStorage.removeItem(TOKEN);
    return false;
  }
  // Who judges is whose token it is, so the name in the settings follows.
  await app.extensionManager.setting.set(RATER, (await response.json()).rater);
  return true;
}

// What people do with pictures anyway, recorded as its own kind of feedback; off until the user turns it on.
//
// What a page can see: runs that it queued (another seed, a captured picture loaded again and changed), a job deleted
// from ComfyUI's lists, and saving or using a picture from the sidebar. What it cannot see and therefore never records:
// files copied, changed or deleted outside ComfyUI, the browser's own "save image", a picture uploaded again under
// another name, masks painted in the mask editor (their files don't say what they were painted on), runs of other tabs.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { answerOf } from "./feedback_api.js";
import { complain, currentRater } from "./settings.js";
import { fetchSettings, postInteraction, putSettings } from "./sidebar_api.js";
import { runOf, savedFiles, seenAndAskedAgain, wentOnWith } from "./sidebar_observed.js";

const SWITCH = "FeedbackLoop.Interactions";
const REMEMBERED_RUNS = 64;

let stored = null; // the server's switch, once it is known: it decides

export const interactionSettings = [
  {
    id: SWITCH,
    name: "Learn from what I do with pictures",
    tooltip:
      "Off: nothing of it is recorded. On: that you saved, deleted, used, inpainted or upscaled a captured picture, or " +
      "ran its graph again with another seed, is kept as its own kind of feedback, apart from what you say.",
    category: ["Feedback Loop", "Interactions", "Switch"],
    type: "boolean",
    defaultValue: false,
    onChange: (wanted) => change(wanted),
  },
];

async function change(wanted) {
  if (stored === null || wanted === stored) return;
  try {
    stored = (await putSettings({ interactions: wanted })).interactions;
    if (stored) await watch.lookBack();
  } catch (error) {
    complain("The switch could not be set", error);
  }
}

/** Records one interaction if the switch is on; what was not asked for must not disturb when it fails. */
export async function record(interaction) {
  if (!stored) return;
  try {
    await postInteraction({ ...interaction, rater: currentRater() });
  } catch (error) {
    console.warn("An interaction was not recorded:", error.message);
  }
}

const capturedIds = (run) => run.captured.flatMap(([, captured]) => captured);

class Watch {
  #files = new Map();
  #jobs = new Map(); // prompt id -> ids of its pictures
  #last = null;
  #said = new Set();
  #automatic = 0;

  /** The next run was queued by us and not by a person: it says nothing. */
  ignoreNext() {
    this.#automatic += 1;
  }

  /** Learns from the runs of before which file holds which picture; records nothing. */
  async lookBack() {
    const history = await answerOf(await api.fetchApi(`/history?max_items=${REMEMBERED_RUNS}`));
    for (const [id, entry] of Object.entries(history)) this.#remember(id, runOf(entry));
  }

  #remember(promptId, run) {
    for (const [file, image] of savedFiles(run)) this.#files.set(file, image);
    const ids = capturedIds(run);
    if (!ids.length) return;
    this.#jobs.set(promptId, ids);
    this.#last = run;
  }

  async ended({ prompt_id: promptId }) {
    if (!stored) return;
    const automatic = this.#automatic > 0 || isQueuedByItself();
    this.#automatic = Math.max(this.#automatic - 1, 0);
    const history = await answerOf(await api.fetchApi(`/history/${encodeURIComponent(promptId)}`));
    if (!history[promptId]) return;
    const run = runOf(history[promptId]);
    const seen = automatic ? [] : [...seenAndAskedAgain(run, this.#last), ...wentOnWith(run, this.#files)];
    this.#remember(promptId, run);
    for (const interaction of seen) await this.#recordOnce(interaction);
  }

  async #recordOnce(interaction) {
    const name = `${interaction.kind} ${interaction.image_id}`;
    if (this.#said.has(name)) return;
    this.#said.add(name);
    await record(interaction);
  }

  /** The ids of a job's pictures, also when the job is deleted before its end could be looked at. */
  async picturesOf(promptId) {
    if (this.#jobs.has(promptId)) return this.#jobs.get(promptId);
    try {
      const history = await answerOf(await api.fetchApi(`/history/${encodeURIComponent(promptId)}`));
      return history[promptId] ? capturedIds(runOf(history[promptId])) : [];
    } catch (error) {
      console.warn("The pictures of a job could not be read:", error.message);
      return [];
    }
  }

  async deleted(imageIds) {
    for (const id of imageIds) await this.#recordOnce({ kind: "deleted", image_id: id });
  }
}

export const watch = new Watch();

/** "Run (instant)" and "Run (on change)" queue without anybody asking. */
const isQueuedByItself = () => (app.extensionManager.queueSettings?.mode ?? "disabled") !== "disabled";

/** The frontend sends no event when a job is deleted from its lists, so its own call is listened to. What the job made
 * is asked before, since nobody knows afterwards. */
function listenToDeletions() {
  const original = api.deleteItem;
  api.deleteItem = async function (type, id) {
    const pictures = stored && type === "history" ? await watch.picturesOf(String(id)) : [];
    const result = await original.call(this, type, id);
    watch.deleted(pictures);
    return result;
  };
}

export async function startWatching() {
  listenToDeletions();
  api.addEventListener("execution_success", ({ detail }) => {
    watch.ended(detail).catch((error) => console.warn("A run could not be looked at:", error.message));
  });
  try {
    stored = (await fetchSettings()).interactions;
    // The switch may have been turned elsewhere; the settings dialog shows what holds.
    if (app.extensionManager.setting.get(SWITCH) !== stored) await app.extensionManager.setting.set(SWITCH, stored);
    if (stored) await watch.lookBack();
  } catch (error) {
    console.warn("Whether interactions are recorded could not be read:", error.message);
  }
}

// What the pictures take on disk, and what can be done about it; and pictures from before the pack was there.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { element } from "./dom.js";
import { complain } from "./settings.js";
import { backUp, prune, scanHistory } from "./sidebar_api.js";

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];
const PROGRESS = "feedback_loop.history"; // the server sends it after every few files
const RESTORE =
  "To go back to a backup, close ComfyUI and run this in the folder that holds custom_nodes, with the Python that runs ComfyUI:";
// ComfyUI serves our files under the name of the pack's folder, which is not the same everywhere.
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0]);
const COMMAND = `python -m custom_nodes.${FOLDER} restore`;

export function inWords(bytes) {
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), UNITS.length - 1);
  const amount = bytes / 1000 ** power;
  return `${amount.toLocaleString(undefined, { maximumFractionDigits: power ? 1 : 0 })} ${UNITS[power]}`;
}

export const confirmed = (title, message, type = "default") =>
  app.extensionManager.dialog.confirm({ title, message, type });

const tell = (summary, detail) => app.extensionManager.toast.add({ severity: "success", summary, detail, life: 6000 });

export class Storage {
  /** @param changed called when pictures came or went */
  constructor(changed) {
    this.changed = changed;
    this.disk = element("p", { className: "fl-disk" });
    this.parts = element("p", { className: "fl-count" });
    this.command = element("code", { className: "fl-command", text: `${COMMAND} NAME` });
    this.collection = element("input", { className: "fl-field", value: "history", maxlength: 200, "aria-label": "Collection for the pictures found" });
    this.bar = element("progress", { className: "fl-meter", "aria-label": "Looking through the output folder", hidden: "" });
    this.found = element("p", { className: "fl-count", role: "status" });
    api.addEventListener(PROGRESS, ({ detail }) => this.#showScan(detail));
    this.scanButton = this.#button("Rate my history", "Add the pictures of the output folder, with the prompts in their files", () => this.scan());
    this.history = element(
      "div",
      { className: "fl-block" },
      element("label", { className: "fl-choice" }, "Into collection", this.collection, this.scanButton),
      this.bar,
      this.found,
    );
    this.storage = element(
      "div",
      { className: "fl-block" },
      this.disk,
      this.parts,
      element(
        "div",
        { className: "fl-bar fl-wrap" },
        this.#button("Prune…", "Delete the pictures that nobody judged, and what finished trainings left", () => this.prune()),
        this.#button("Back up", "Write a copy of every judgement and picture", () => this.backUp()),
      ),
      element("p", { className: "fl-count", text: RESTORE }),
      this.command,
    );
  }

  #button(text, title, click) {
    return element("button", { className: "fl-button", type: "button", text, title, on: { click } });
  }

  show(stats) {
    const pictures = `${stats.images.toLocaleString()} picture${stats.images === 1 ? "" : "s"}`;
    this.disk.textContent = `${pictures}, ${inWords(stats.bytes ?? stats.media_bytes)} on disk`;
    const parts = Object.entries(stats.disk ?? {}).filter(([, bytes]) => bytes);
    this.parts.textContent = parts.map(([name, bytes]) => `${name} ${inWords(bytes)}`).join(" · ");
  }

  async prune() {
    const message = "Every picture that nobody rated, compared, marked or commented on is deleted from the feedback folder, and what finished trainings drew for themselves. Files in the output folder stay.";
    if (!(await confirmed("Prune pictures that nobody judged?", message, "delete"))) return;
    try {
      const freed = await prune();
      tell("Pruned", `${freed.images} pictures, ${inWords(freed.bytes)} freed.`);
      this.changed();
    } catch (error) {
      complain("Nothing was pruned", error);
    }
  }

  async backUp() {
    try {
      const { name, bytes } = await backUp();
      this.command.textContent = `${COMMAND} ${name}`;
      tell("Backed up", `${name}, ${inWords(bytes)}, in the folder user/__feedback_loop/backups.`);
      this.changed();
    } catch (error) {
      complain("The backup failed", error);
    }
  }

  async scan() {
    const collection = this.collection.value.trim();
    if (!collection) return complain("Rate my history", "Name the collection that the pictures shall go into.");
    this.scanButton.disabled = true;
    this.bar.hidden = false;
    this.bar.removeAttribute("value");
    this.found.textContent = "Looking through the output folder…";
    try {
      const { added, known, refused, reasons } = await scanHistory(collection);
      const rest = [known && `${known} known before`, refused && `${refused} could not be read`].filter(Boolean);
      this.found.textContent = [`${added} pictures added`, ...rest].join(", ");
      this.found.title = (reasons ?? []).map(({ file, reason }) => `${file}: ${reason}`).join("\n");
      this.changed();
    } catch (error) {
      this.found.textContent = "";
      complain("The output folder could not be looked through", error);
    } finally {
      this.scanButton.disabled = false;
      this.bar.hidden = true;
    }
  }

  #showScan({ done, files, added }) {
    if (this.bar.hidden) return; // another page looks through the folder
    this.bar.max = Math.max(files, 1);
    this.bar.value = done;
    this.found.textContent = `${done} of ${files} files, ${added} pictures added`;
  }
}

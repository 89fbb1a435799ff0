// The sidebar "Feedback": pictures, pairs, and how far the ratings have come.
import { api } from "../../../scripts/api.js";
import { ComparePanel } from "./compare.js";
import { element } from "./dom.js";
import { openFamily } from "./family.js";
import { fetchImage } from "./feedback_api.js";
import { openFullView } from "./full_view.js";
import { marks } from "./marks.js";
import { pictures } from "./pictures.js";
import { said } from "./said.js";
import { complain } from "./settings.js";
import { deleteImage, fetchStats, searchImages } from "./sidebar_api.js";
import { Filters } from "./sidebar_filters.js";
import { PictureList } from "./sidebar_list.js";
import { Progress } from "./sidebar_progress.js";
import { QueueAfter } from "./sidebar_queue.js";
import { confirmed, inWords, Storage } from "./sidebar_storage.js";
import { saveCopy, useInGraph } from "./sidebar_use.js";
import { Watermarks } from "./sidebar_watermarks.js";
import { takeBack } from "./take_back.js";

const TABS = { pictures: "Pictures", compare: "Compare", progress: "Progress" };
const NOTHING_HERE =
  "No pictures here. Capture pictures behind a VAE Decode brings some, and so does Rate my history under Progress.";
const AFTER_JUDGING_MS = 700;
const LOOK_AHEAD = 500; // pictures that the large view walks through from the one that was opened

export class SidebarView {
  constructor() {
    this.filters = new Filters(() => this.restart());
    this.list = new PictureList((cursor, limit) => this.#page(cursor, limit), {
      rate: (id, stars) => this.rate(id, stars),
      open: (id, part) => this.#open(id, part),
      undo: () => this.undo(),
      save: (id) => saveCopy(id),
      use: (id) => this.#use(id),
      family: (id) => openFamily(id),
      remove: (id) => this.remove(id),
      shown: () => this.#showCount(),
      failed: (error) => complain("More pictures could not be listed", error),
    });
    this.watermarks = new Watermarks(this.filters, () => this.#scoresCame());
    this.compare = new ComparePanel({ collection: () => this.filters.collection || null, undo: () => this.undo() });
    this.progress = new Progress();
    this.queueAfter = new QueueAfter();
    this.storage = new Storage(() => this.refresh());
    this.#build();
    this.#listen();
    this.choose("pictures");
  }

  #build() {
    this.count = element("p", { className: "fl-count", role: "status" });
    this.fresh = element("button", { className: "fl-button fl-fresh", type: "button", text: "New pictures", hidden: "" });
    this.fresh.addEventListener("click", () => this.restart());
    this.panels = {
      pictures: element("div", { className: "fl-panel" }, this.filters.element, this.watermarks.element, element("div", { className: "fl-bar" }, this.count, this.fresh), this.list.element),
      compare: element("div", { className: "fl-panel" }, this.compare.element),
      progress: this.#progressPanel(),
    };
    this.tabs = Object.entries(TABS).map(([name, text]) => this.#tab(name, text));
    const tabs = element("div", { className: "fl-tabs", role: "tablist", "aria-label": "Feedback", on: { keydown: (event) => this.#tabKey(event) } }, ...this.tabs);
    this.element = element("section", { className: "fl-side", "aria-label": "Feedback" }, tabs, this.progress.element, ...Object.values(this.panels));
  }

  #progressPanel() {
    const part = (title, ...content) => element("section", { className: "fl-part" }, element("h3", { text: title }), ...content);
    return element(
      "div",
      { className: "fl-panel fl-scrolls" },
      part("Reward", this.progress.facts),
      part("Training", this.queueAfter.element),
      part("Pictures from before", this.storage.history),
      part("Storage", this.storage.storage),
    );
  }

  #tab(name, text) {
    const tab = element("button", { className: "fl-tab", type: "button", role: "tab", text, on: { click: () => this.choose(name) } });
    tab.dataset.tab = name;
    const panel = this.panels[name];
    panel.id = `fl-panel-${name}`;
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-label", text);
    tab.setAttribute("aria-controls", panel.id);
    return tab;
  }

  #tabKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const next = this.tabs[(this.tabs.indexOf(document.activeElement) + step + this.tabs.length) % this.tabs.length];
    next.focus();
    this.choose(next.dataset.tab);
  }

  choose(name) {
    for (const tab of this.tabs) {
      const chosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      this.panels[tab.dataset.tab].hidden = !chosen;
    }
    if (name === "compare") this.compare.show();
  }

  #listen() {
    for (const event of ["said", "undone"]) said.addEventListener(event, () => this.#judged());
    marks.addEventListener("change", ({ detail }) => this.compare.showChange(detail.id));
    document.addEventListener("visibilitychange", () => this.#comesBack());
    api.addEventListener("executed", ({ detail }) => {
      if (detail?.output?.feedback_images || detail?.output?.feedback_gate) this.#captured();
    });
  }

  #comesBack() {
    if (document.visibilityState === "visible" && this.element.isConnected) this.opened();
  }

  /** New pictures: shown at once where the newest are looked at, else offered. */
  #captured() {
    if (!this.element.isConnected) return void (this.stale = true);
    if (this.list.atTop && !this.filters.query().sort) this.restart();
    else this.fresh.hidden = false;
    this.showStats();
  }

  /** Pictures that had no watermark score have one now. */
  #scoresCame() {
    if (this.list.atTop) this.restart();
    else this.fresh.hidden = false;
  }

  /** Called whenever the panel comes into sight. */
  opened() {
    if (!this.list.ids.length || this.stale) this.restart();
    else this.#readAgain();
    this.stale = false;
    this.showStats();
  }

  /** What is in sight may have been rated, or deleted, in another tab or by somebody else. */
  async #readAgain() {
    const ids = this.list.visibleIds;
    const found = await Promise.allSettled(ids.map(fetchImage));
    pictures.learn(found.filter(({ value }) => value).map(({ value }) => value));
    for (const [index, { reason }] of found.entries()) if (reason?.status === 404) pictures.forget(ids[index]);
  }

  async refresh() {
    await Promise.all([this.restart(), this.showStats()]);
  }

  async restart() {
    this.fresh.hidden = true;
    this.watermarks.need();
    try {
      await this.list.restart();
    } catch (error) {
      this.count.textContent = "The pictures could not be listed.";
      complain("The pictures could not be listed", error);
    }
  }

  async #page(cursor, limit) {
    const { items, next } = await searchImages(this.filters.query(), cursor, limit);
    return { ids: pictures.learn(items), next };
  }

  #judged() {
    clearTimeout(this.judging);
    this.judging = setTimeout(() => this.showStats(), AFTER_JUDGING_MS);
  }

  async showStats() {
    try {
      this.stats = await fetchStats();
    } catch (error) {
      return complain("The counts could not be read", error);
    }
    this.filters.offer(this.stats.collections, (this.stats.reliability ?? []).map((one) => one.rater));
    this.progress.show(this.stats);
    this.storage.show(this.stats);
    this.queueAfter.see(this.stats.ratings + this.stats.comparisons);
    this.#showCount();
  }

  #showCount() {
    const loaded = this.list.ids.length;
    const { collection } = this.filters;
    const whole = this.filters.isWhole && (collection ? this.stats?.collections[collection] : this.stats?.images);
    const total = this.list.isComplete ? loaded : whole;
    const number = total ? total.toLocaleString() : `${loaded.toLocaleString()} or more`;
    this.count.textContent = loaded ? `${number} picture${total === 1 ? "" : "s"}` : NOTHING_HERE;
  }

  async rate(id, stars) {
    try {
      await pictures.rate(id, stars);
    } catch (error) {
      complain("The rating was not stored", error);
    }
  }

  undo() {
    return takeBack(this.count);
  }

  #open(startId, part) {
    const from = Math.max(this.list.ids.indexOf(startId) - LOOK_AHEAD / 2, 0);
    openFullView(this.list.ids.slice(from, from + LOOK_AHEAD), startId, {
      rate: (id, stars) => this.rate(id, stars),
      closed: (id) => this.list.activateId(id),
      part,
    });
  }

  async #use(id) {
    try {
      await useInGraph(id);
    } catch (error) {
      complain("The picture could not be put into the graph", error);
    }
  }

  async remove(id) {
    const message = "The picture goes from the feedback folder, with every rating, comparison, mark and comment on it. This can't be undone. Files in the output folder stay.";
    if (!(await confirmed("Delete this picture?", message, "delete"))) return;
    try {
      const freed = await deleteImage(id);
      pictures.forget(id);
      this.showStats();
      this.list.element.focus({ preventScroll: true });
      if (freed.bytes) this.count.title = `${inWords(freed.bytes)} freed`;
    } catch (error) {
      complain("The picture was not deleted", error);
    }
  }
}

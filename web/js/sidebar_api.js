// What the sidebar asks of the server beside ratings.
import { answerOf, BASE, write } from "./feedback_api.js";
import { send } from "./team.js";

async function get(path, asked = {}) {
  const said = Object.entries(asked).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return answerOf(await send(`${BASE}${path}?${new URLSearchParams(said)}`));
}

/** {items, next} of the pictures that `filter` leaves; `next` is the cursor of the following page, or null. */
export const searchImages = (filter, cursor, limit) => get("/images", { ...filter, cursor, limit });

export const fetchStats = () => get("/stats");

export const deleteImage = (id) => write("DELETE", `/images/${encodeURIComponent(id)}`);

export const prune = () => write("POST", "/prune", {});

export const backUp = () => write("POST", "/backup", {});

export const scanHistory = (collection) => write("POST", "/history/scan", { collection });

/** {done, left} of the pictures that a detector looks at because nobody did yet. */
export const lookForWatermarks = () => write("POST", "/watermarks/scan", {});

export const postInteraction = (interaction) => write("POST", "/interactions", interaction);

/** {interactions}: whether what people do with pictures is recorded. */
export const fetchSettings = () => get("/settings");

export const putSettings = (settings) => write("PUT", "/settings", settings);

// The pack's HTTP interface, as the browser uses it. Every write carries an Idempotency-Key, so that a write sent twice
// because the connection broke is one judgement, not two.
import { api } from "../../../scripts/api.js";
import { send } from "./team.js";

export const BASE = "/feedback_loop/v1";
const MAX_PAGE = 500;

export const thumbnailUrl = (id) => api.apiURL(`${BASE}/images/${encodeURIComponent(id)}/thumbnail`);

export const pictureUrl = (id) => api.apiURL(`${BASE}/images/${encodeURIComponent(id)}/file`);

function newIdempotencyKey() {
  // crypto.randomUUID is missing on plain http pages other than localhost.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function answerOf(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw Object.assign(new Error(body.error ?? `The server answered ${response.status}.`), { status: response.status });
}

export async function write(method, path, body) {
  const options = {
    method,
    headers: { "Content-Type": "application/json", "Idempotency-Key": newIdempotencyKey() },
    ...(body && { body: JSON.stringify(body) }),
  };
  let response;
  try {
    response = await send(BASE + path, options);
  } catch {
    // fetch rejects only when the connection fails; the key makes the second attempt safe.
    response = await send(BASE + path, options);
  }
  return answerOf(response);
}

/** Newest first: {items, next}; `next` is the cursor of the following page, or null. */
export async function fetchImages(collection, { cursor, limit }) {
  const query = new URLSearchParams({ collection, limit: Math.min(limit, MAX_PAGE) });
  if (cursor) query.set("cursor", cursor);
  return answerOf(await send(`${BASE}/images?${query}`));
}

export const fetchImage = async (id) => answerOf(await send(`${BASE}/images/${encodeURIComponent(id)}`));

/** Takes my rating back, and with it those that it replaced: otherwise the one before it would count again. */
export const clearRating = (id) => write("DELETE", `/judgements/${encodeURIComponent(id)}?clear=true`);

// What can be said of pictures, as the server takes it. Every call resolves with the id of the stored judgement.
import { answerOf, BASE, write } from "./feedback_api.js";
import { currentRater } from "./settings.js";
import { send } from "./team.js";

export const AXIS = "overall";

const said = async (path, body) => (await write("POST", path, { ...body, rater: currentRater() })).id;

/** @param leadTime seconds from seeing the picture to rating it, where known */
export const postRating = (imageId, { value, scale }, leadTime) =>
  said("/ratings", { image_id: imageId, value, scale, axis: AXIS, ...(leadTime && { lead_time: leadTime }) });

/** By kind: stores one of it. A comparison is {left, right, winner, policy?, propensity?}, a ranking best first. */
export const POST = {
  comparisons: (comparison) => said("/comparisons", { axis: AXIS, ...comparison }),
  rankings: (ranking) => said("/rankings", { axis: AXIS, ...ranking }),
  regions: (region) => said("/regions", region),
  word_marks: (mark) => said("/word_marks", mark),
  tags: (tag) => said("/tags", tag),
  comments: (comment) => said("/comments", comment),
};

/** Takes one judgement back; a rating that it replaced counts again. */
export const takeBack = (id) => write("DELETE", `/judgements/${encodeURIComponent(id)}`);

const get = async (path) => answerOf(await send(BASE + path));

/** {regions, word_marks, tags, comments, comparisons, rankings} that count. */
export const fetchMarks = (imageId) => get(`/images/${encodeURIComponent(imageId)}/marks`);

/** The next two pictures to compare, or null; of all collections if `collection` is null. */
export async function fetchPair(collection, policy) {
  const query = new URLSearchParams({ policy, axis: AXIS, rater: currentRater(), ...(collection !== null && { collection }) });
  return get(`/pairs/next?${query}`);
}

// What a finished run says about captured pictures, read from its entry in ComfyUI's history. Nothing here guesses: a
// picture is only recognised by the very file that the same run saved beside capturing it, or by a file of ours.
const SEEDS = new Set(["seed", "noise_seed"]);
const LOADERS = new Set(["LoadImage", "LoadImageMask", "LoadImageOutput"]);
const INPAINTING = /inpaint|SetLatentNoiseMask/i;
const UPSCALING = /upscale|^ImageScale/i;
const OURS = /^feedback_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.png$/;

export const inputNameOf = (imageId) => `feedback_${imageId}.png`;

const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === "string";
const linkText = (value) => (isLink(value) ? value.join(":") : null);

/** {graph, queuedAt, endedAt, captured: [[node, ids]], files: [[node, images]]} of an entry. Times are the server's. */
export function runOf(entry) {
  const [, , graph, extra] = entry.prompt;
  const end = (entry.status?.messages ?? []).find(([kind]) => kind === "execution_success");
  const outputs = Object.entries(entry.outputs ?? {});
  return {
    graph,
    queuedAt: extra?.create_time ?? 0,
    endedAt: end?.[1].timestamp ?? 0,
    captured: outputs.filter(([, output]) => output.feedback_images).map(([node, output]) => [node, output.feedback_images]),
    files: outputs.filter(([, output]) => output.images).map(([node, output]) => [node, output.images]),
  };
}

/** By file ("output/sub/name.png"), the captured picture in it: saved from the same link as captured, or after it. */
export function savedFiles({ graph, captured, files }) {
  const found = new Map();
  for (const [node, ids] of captured) {
    const sources = new Set([linkText(graph[node]?.inputs.images), `${node}:0`]);
    for (const [saver, images] of files) {
      if (!sources.has(linkText(graph[saver]?.inputs.images)) || images.length !== ids.length) continue;
      for (const [index, { type, subfolder, filename }] of images.entries()) {
        found.set([type, subfolder, filename].filter(Boolean).join("/"), ids[index]);
      }
    }
  }
  return found;
}

/** "output/sub/name.png" for "sub/name.png [output]", as loaders write it; without a suffix it is an input. */
function fileOf(value) {
  const [, name, folder] = /^(.*?)(?: \[(input|output|temp)\])?$/.exec(String(value));
  return `${folder ?? "input"}/${name}`;
}

/** Whether two graphs differ in seeds and in nothing else. */
export function differInSeedOnly(graph, other) {
  const plain = (one, withSeeds) =>
    JSON.stringify(
      Object.entries(one).map(([id, { class_type: type, inputs }]) => [
        id,
        type,
        Object.entries(inputs).filter(([name, value]) => withSeeds || !SEEDS.has(name) || isLink(value)),
      ]),
    );
  return plain(graph, false) === plain(other, false) && plain(graph, true) !== plain(other, true);
}

/** Ids of the nodes that take in, directly or not, what `start` gives. */
function downstreamOf(graph, start) {
  const reached = new Set([start]);
  for (let grew = true; grew; ) {
    grew = false;
    for (const [id, { inputs }] of Object.entries(graph)) {
      if (reached.has(id) || !Object.values(inputs).some((value) => isLink(value) && reached.has(value[0]))) continue;
      reached.add(id);
      grew = true;
    }
  }
  reached.delete(start);
  return reached;
}

function kindOf(graph, nodes) {
  const types = [...nodes].map((id) => graph[id].class_type);
  if (types.some((type) => INPAINTING.test(type))) return "inpainted";
  return types.some((type) => UPSCALING.test(type)) ? "upscaled" : "picked";
}

/** [{kind, image_id, result_id?}] of the captured pictures that a run loaded from a file and went on with. */
export function wentOnWith({ graph, captured }, fileOwners) {
  const found = [];
  for (const [id, { class_type: type, inputs }] of Object.entries(graph)) {
    if (!LOADERS.has(type) || isLink(inputs.image)) continue;
    const file = fileOf(inputs.image);
    const image = fileOwners.get(file) ?? OURS.exec(file.slice("input/".length))?.[1];
    const nodes = downstreamOf(graph, id);
    if (!image || !nodes.size) continue;
    const results = captured.filter(([node]) => nodes.has(node)).flatMap(([, ids]) => ids);
    const result = results.length === 1 && results[0] !== image ? { result_id: results[0] } : {};
    found.push({ kind: kindOf(graph, nodes), image_id: image, ...result });
  }
  return found;
}

/** [{kind, image_id, result_id}]: pictures that somebody saw and asked for once more with another seed. */
export function seenAndAskedAgain(run, before) {
  if (!before || run.queuedAt < before.endedAt || !differInSeedOnly(run.graph, before.graph)) return [];
  const earlier = new Map(before.captured);
  return run.captured.flatMap(([node, ids]) => {
    const old = (earlier.get(node) ?? []).filter((id) => !ids.includes(id));
    return old.map((id, index) => ({ kind: "regenerated", image_id: id, ...(ids[index] && { result_id: ids[index] }) }));
  });
}

// The conversations of this browser: each a tree of turns, kept in localStorage under a key of its own.
//
//   talk  {id, title, made, changed, system, sampling: {temperature, top_p, max_tokens, seed},
//          turns: {id: turn}, chosen: {id of a turn, or "root": id of the one of those after it that is shown}}
//   turn  {id, parent: id or null, role, content, state: "done" | "streams" | "interrupted" | "stopped" | "failed",
//          finish, error, model, version, sampling, tokens, seconds, first, rival: id, votes: {kind: {id, ...}}}

const KEY = "conclave.talk.";

export function name(length = 12) {
  const letters = "abcdefghijkmnpqrstuvwxyz23456789"; // 32 of them
  return Array.from(crypto.getRandomValues(new Uint8Array(length)), (byte) => letters[byte % 32]).join("");
}

export function newTalk(before) {
  const now = Date.now();
  const sampling = before?.sampling ?? { temperature: 0.8, top_p: 1, max_tokens: null, seed: null };
  return { id: name(), title: "", made: now, changed: now, system: before?.system ?? "", sampling: { ...sampling }, turns: {}, chosen: {} };
}

export function all() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(KEY));
  return keys.map((key) => read(localStorage.getItem(key))).filter(Boolean).sort((a, b) => b.changed - a.changed);
}

// False where the browser has no room left.
export function save(talk) {
  talk.changed = Date.now();
  try {
    localStorage.setItem(KEY + talk.id, JSON.stringify(talk));
    return true;
  } catch {
    return false;
  }
}

export const remove = (talk) => localStorage.removeItem(KEY + talk.id);

function read(text) {
  try {
    return checked(JSON.parse(text));
  } catch {
    return null;
  }
}

// A talk from a file or the storage, with what it must have and nothing that does not fit; null if it is none.
export function checked(talk) {
  if (!talk || !/^[\w-]{1,64}$/.test(talk.id) || typeof talk.turns !== "object" || !talk.turns) return null;
  const turns = {};
  for (const turn of Object.values(talk.turns)) {
    const fits = ["user", "assistant"].includes(turn?.role) && typeof turn.content === "string" && /^[\w-]{1,64}$/.test(turn.id);
    if (!fits || !(turn.parent === null || turns[turn.parent])) return null; // parents come first: there is no circle
    turns[turn.id] = whole(turn);
  }
  for (const turn of Object.values(turns)) {
    const fits = turn.pair?.every((id) => turns[id]?.parent === turn.parent) && turn.pair.includes(turn.id) && turn.pair.includes(turn.rival);
    if (!fits) for (const field of ["rival", "pair", "settled"]) delete turn[field];
  }
  const { made, changed, title, system } = talk;
  return {
    ...newTalk(), id: talk.id, made: Number(made) || 0, changed: Number(changed) || 0, title: String(title ?? ""),
    system: String(system ?? ""), sampling: { ...newTalk().sampling, ...talk.sampling }, turns, chosen: { ...talk.chosen },
  };
}

// A turn whose fields are of the kinds that the page shows; what is no such field is left out.
function whole(turn) {
  const kept = { id: turn.id, parent: turn.parent, role: turn.role, content: turn.content, votes: {} };
  for (const field of ["finish", "error", "model", "version", "rival"]) if (typeof turn[field] === "string") kept[field] = turn[field];
  for (const field of ["tokens", "seconds", "first"]) if (Number.isFinite(turn[field])) kept[field] = turn[field];
  for (const [kind, vote] of Object.entries(turn.votes ?? {})) if (typeof vote?.id === "string") kept.votes[kind] = vote;
  if (Array.isArray(turn.pair) && turn.pair.length === 2) Object.assign(kept, { pair: turn.pair.map(String), settled: Boolean(turn.settled) });
  if (typeof turn.stream?.id === "string" && Number.isInteger(turn.stream.next)) kept.stream = { id: turn.stream.id, next: turn.stream.next };
  const ends = { streams: "interrupted", interrupted: "interrupted", stopped: "stopped", failed: "failed" };
  return { ...kept, sampling: { ...turn.sampling }, state: ends[turn.state] ?? "done" };
}

export const after = (talk, parent) => Object.values(talk.turns).filter((turn) => turn.parent === parent);

export function add(talk, parent, role, content) {
  const turn = { id: "t" + name(), parent, role, content, state: "done", votes: {} };
  talk.turns[turn.id] = turn;
  talk.chosen[parent ?? "root"] = turn.id;
  if (role === "user" && !talk.title) talk.title = content.trim().split("\n")[0].slice(0, 60);
  return turn;
}

// The turns that are shown, from the first on.
export function path(talk) {
  const found = [];
  for (let parent = null; ; ) {
    const next = after(talk, parent);
    if (!next.length) return found;
    const turn = next.find((each) => each.id === talk.chosen[parent ?? "root"]) ?? next.at(-1);
    found.push(turn);
    parent = turn.id;
  }
}

// What the model is asked with: everything up to and including `turn`.
export function messages(talk, turn) {
  const found = [];
  for (let at = turn; at; at = talk.turns[at.parent]) found.unshift({ role: at.role, content: at.content });
  return talk.system.trim() ? [{ role: "system", content: talk.system }, ...found] : found;
}

export function has(talk, words) {
  const text = [talk.title, talk.system, ...Object.values(talk.turns).map((turn) => turn.content)].join("\n").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

// What happens on the labelling page: a query whose answers are ranked under each principle, by dragging or by keys.
//
// A principle's ranking is a list of tiers, the best first: [[2], [0, 1]] says that answer 2 is best and the others tie.

import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { markdown } from "./markdown.js";
import { named, say, speak } from "./words.js";

const PREFERENCES = "conclave.preferences"; // the chat page's
const DRAFT = "conclave.label.";

const preferences = JSON.parse(localStorage.getItem(PREFERENCES) ?? "{}");
let items = []; // {id, state}, in order
let item = null; // the one that is shown, whole
let draft = null; // {ranks: {principle: tiers}, comment}: what is not stored yet
let active = 0; // the principle that keys are for
let held = null; // {principle, number}: the answer that was tapped and waits for its place

const letter = (number) => String.fromCharCode(65 + item.answers.findIndex((each) => each.number === number));
const tiersOf = (principle) => (draft.ranks[principle] ??= []);
const left = (principle) => item.answers.map((each) => each.number).filter((number) => !tiersOf(principle).flat().includes(number));

function trouble(message) {
  byId("trouble").textContent = message;
  byId("trouble").hidden = !message;
}

// ---- ranks

function lift(tiers, number) {
  for (const tier of tiers) if (tier.includes(number)) tier.splice(tier.indexOf(number), 1);
}

// Puts an answer between tiers, before the one at `at`, or with those of that tier where it ties.
function put(principle, number, at, ties) {
  const tiers = tiersOf(principle);
  const goal = tiers[at];
  if (ties && goal?.includes(number)) return;
  lift(tiers, number);
  if (ties && goal) goal.push(number);
  else tiers.splice(at, 0, [number]);
  draft.ranks[principle] = tiers.filter((tier) => tier.length);
  changed();
}

function take(principle, number) {
  lift(tiersOf(principle), number);
  draft.ranks[principle] = tiersOf(principle).filter((tier) => tier.length);
  changed();
}

function changed() {
  held = null;
  try {
    localStorage.setItem(DRAFT + item.id, JSON.stringify(draft));
  } catch {
    trouble(say("full"));
  }
  lanes();
}

// What the server takes: of each answer how many are better.
const ranked = (tiers) => tiers.flatMap((tier, at) => tier.map((number) => ({ number, place: tiers.slice(0, at).flat().length })));

function tiersFrom(given) {
  const places = [...new Set(given.map((each) => each.place))].sort((a, b) => a - b);
  return places.map((place) => given.filter((each) => each.place === place).map((each) => each.number));
}

// ---- what is shown

function show() {
  byId("done").textContent = say("done_of", items.filter((each) => each.state !== "waiting").length, items.length);
  byId("progress").max = Math.max(1, items.length);
  byId("progress").value = items.filter((each) => each.state !== "waiting").length;
  for (const id of ["work", "steps"]) byId(id).hidden = !item;
  if (!item) return trouble(say(items.length ? "all_done" : "none_waits"));
  const place = items.findIndex((each) => each.id === item.id);
  byId("state").textContent = say("place_of", place + 1, items.length, say(`is_${items[place].state}`));
  byId("back").disabled = place === 0;
  byId("next").disabled = place === items.length - 1;
  byId("withdraw").hidden = items[place].state === "waiting";
  byId("query").replaceChildren(...item.messages.map((turn) =>
    el("article", { class: `turn ${turn.role}` }, el("div", { class: "who" }, say({ user: "asked", assistant: "model", system: "system" }[turn.role])), el("div", { class: "text" }, turn.content))));
  byId("answers").replaceChildren(...item.answers.map((each) =>
    el("article", { class: "turn answer", "aria-label": letter(each.number) }, el("div", { class: "who" }, letter(each.number)), shownText(each.text))));
  byId("comment").value = draft.comment;
  lanes();
}

function shownText(text) {
  const node = el("div", { class: "text" });
  node.append(text.trim() ? markdown(text) : say("empty"));
  return node;
}

function lanes() {
  const focused = document.activeElement?.id;
  byId("lanes").replaceChildren(...item.principles.map(lane));
  if (focused && document.activeElement?.id !== focused) byId(focused)?.focus({ preventScroll: true });
}

function lane(principle, place) {
  const tiers = tiersOf(principle), whole = !left(principle).length;
  const parts = [gap(principle, 0)];
  tiers.forEach((tier, at) => parts.push(tierOf(principle, tier, at), gap(principle, at + 1)));
  const before = place > 0 && !left(item.principles[place - 1]).length && !tiers.length;
  return el("div", { class: `lane${place === active ? " active" : ""}`, role: "group", "aria-label": named(principle), "data-principle": principle, onpointerdown: () => choose(place) },
    el("div", { class: "who" }, named(principle), whole ? " ✓" : ""),
    el("div", { class: "tiers" }, ...parts),
    el("div", { class: "pool", ...drop((number) => take(principle, number), principle) },
      ...left(principle).map((number) => chip(principle, number)),
      before && el("button", { type: "button", class: "small", onclick: () => copied(place) }, say("as_above"))));
}

function copied(place) {
  draft.ranks[item.principles[place]] = structuredClone(tiersOf(item.principles[place - 1]));
  active = place;
  changed();
}

function tierOf(principle, tier, at) {
  const rank = tiersOf(principle).slice(0, at).flat().length + 1;
  return el("div", { class: "tier", role: "group", "aria-label": say("place", rank), ...drop((number) => put(principle, number, at, true), principle),
    onclick: () => held && put(held.principle, held.number, at, true) },
    el("span", { class: "small" }, rank), ...tier.map((number) => chip(principle, number)));
}

function gap(principle, at) {
  return el("button", { type: "button", class: "gap", "aria-label": say("gap", at + 1), id: `gap-${principle}-${at}`, ...drop((number) => put(principle, number, at, false), principle),
    onclick: () => held && put(held.principle, held.number, at, false) }, "");
}

function chip(principle, number) {
  const taken = held?.principle === principle && held.number === number;
  return el("button", { type: "button", class: "chip", draggable: "true", id: `chip-${principle}-${number}`, "aria-pressed": String(taken),
    onclick: (event) => (event.stopPropagation(), tapped(principle, number)),
    ondragstart: (event) => {
      event.dataTransfer.setData("text/plain", `${principle}\n${number}`);
      event.dataTransfer.effectAllowed = "move";
    } }, letter(number));
}

// Tapped while another of its principle is held, an answer is what that one ties with.
function tapped(principle, number) {
  const tiers = tiersOf(principle);
  if (held?.principle === principle && held.number !== number) {
    const at = tiers.findIndex((tier) => tier.includes(number));
    if (at >= 0) return put(principle, held.number, at, true);
  }
  held = held?.principle === principle && held.number === number ? null : { principle, number };
  lanes();
}

// What a place does when an answer of its own principle is dropped on it.
function drop(act, principle) {
  return {
    ondragover: (event) => event.preventDefault(),
    ondrop: (event) => {
      event.preventDefault();
      event.stopPropagation();
      const [from, number] = event.dataTransfer.getData("text/plain").split("\n");
      if (from === principle) act(Number(number));
    },
  };
}

function choose(place) {
  active = Math.min(Math.max(0, place), item.principles.length - 1);
  for (const [at, node] of [...byId("lanes").children].entries()) node.classList.toggle("active", at === active);
}

// ---- to and from the server

async function open(id) {
  try {
    item = await api.label(id);
  } catch (error) {
    return trouble(say("away", error.message));
  }
  const kept = JSON.parse(localStorage.getItem(DRAFT + id) ?? "null");
  const stored = Object.fromEntries(Object.entries(item.ranks).map(([principle, given]) => [principle, tiersFrom(given)]));
  draft = kept ?? { ranks: stored, comment: item.comment };
  [active, held] = [0, null];
  location.replace(`#${id}`);
  trouble("");
  show();
  byId("work").scrollTop = 0;
}

async function refresh() {
  items = (await api.labels()).data;
}

function onward(from) {
  const place = items.findIndex((each) => each.id === from);
  const next = [...items.slice(place + 1), ...items.slice(0, place)].find((each) => each.state === "waiting");
  if (next) return open(next.id);
  item = items.length ? item : null;
  show();
  trouble(say("all_done"));
}

async function send(body, done) {
  const { id } = item;
  try {
    await api.rank(id, body);
    await refresh();
  } catch (error) {
    return trouble(say("unsent_label", error.message));
  }
  localStorage.removeItem(DRAFT + id);
  byId("status").textContent = say(done);
  await onward(id);
}

function save() {
  const whole = item.principles.filter((principle) => !left(principle).length);
  const torn = item.principles.find((principle) => tiersOf(principle).length && left(principle).length);
  if (torn) return trouble(say("not_whole", named(torn), left(torn).map(letter).join(", ")));
  if (!whole.length) return trouble(say("no_rank"));
  const ranks = Object.fromEntries(whole.map((principle) => [principle, ranked(tiersOf(principle))]));
  return send({ ranks, comment: byId("comment").value.trim() }, "label_kept");
}

const pass = () => send({ skipped: true, comment: byId("comment").value.trim() }, "label_passed");

async function withdraw() {
  try {
    await api.unrank(item.id);
    await refresh();
  } catch (error) {
    return trouble(say("unsent_label", error.message));
  }
  localStorage.removeItem(DRAFT + item.id);
  byId("status").textContent = say("label_gone");
  await open(item.id);
}

function step(by) {
  const next = items[items.findIndex((each) => each.id === item.id) + by];
  if (next) open(next.id);
}

// ---- keys

function pressed(event) {
  if (!item || event.ctrlKey || event.metaKey || event.altKey || ["TEXTAREA", "SELECT", "INPUT"].includes(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const principle = item.principles[active], tiers = tiersOf(principle);
  const answer = /^[a-z]$/i.test(event.key) ? item.answers[event.key.toUpperCase().charCodeAt(0) - 65] : null;
  const acts = {
    ArrowUp: () => choose(active - 1), ArrowDown: () => choose(active + 1), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    Backspace: () => tiers.length && take(principle, tiers.at(-1).at(-1)),
    "0": pass, "/": () => byId("comment").focus(), "=": () => active > 0 && copied(active),
    Enter: () => (event.target.tagName === "BUTTON" ? null : save()),
  };
  const act = answer ? () => put(principle, answer.number, event.shiftKey ? tiers.length - 1 : tiers.length, event.shiftKey && tiers.length > 0) : acts[event.key];
  if (!act || (event.key === "Enter" && event.target.tagName === "BUTTON")) return;
  event.preventDefault();
  act();
}

byId("comment").addEventListener("input", () => {
  draft.comment = byId("comment").value;
  localStorage.setItem(DRAFT + item.id, JSON.stringify(draft));
});
byId("save").addEventListener("click", save);
byId("pass").addEventListener("click", pass);
byId("withdraw").addEventListener("click", withdraw);
byId("back").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
document.addEventListener("keydown", pressed);
byId("language").addEventListener("change", () => {
  preferences.language = byId("language").value;
  localStorage.setItem(PREFERENCES, JSON.stringify({ ...JSON.parse(localStorage.getItem(PREFERENCES) ?? "{}"), language: preferences.language }));
  speak(preferences.language);
  show();
});

byId("language").value = speak(preferences.language);
document.documentElement.dataset.theme = preferences.theme ?? "auto";
try {
  await refresh();
  const wanted = items.find((each) => `#${each.id}` === location.hash) ?? items.find((each) => each.state === "waiting") ?? items[0];
  if (wanted) await open(wanted.id);
  else show();
} catch (error) {
  trouble(say("away", error.message));
}

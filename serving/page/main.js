// What happens on the chat page: the conversation that is shown, answers that stream into it, votes on them.

import * as api from "./api.js";
import { byId, el, sign } from "./dom.js";
import * as talks from "./talks.js";
import { ballot, conversation, text } from "./view.js";
import { say, speak } from "./words.js";

const SAVE_EVERY = 250; // milliseconds, while an answer streams
const LEFT = "conclave.left"; // what streamed when this tab was left, which goes on after a reload
const PREFERENCES = "conclave.preferences";

const preferences = { language: "", theme: "auto", trains: true, ...JSON.parse(localStorage.getItem(PREFERENCES) ?? "{}") };
const streams = new Map(); // {id of a turn: {talk, stop}}
let card = null; // of the model, as /v1/models has it
let leaving = false;
let talk = talks.all()[0] ?? talks.newTalk();

const busy = () => [...streams.values()].some((stream) => stream.talk.id === talk.id);
const context = () => ({ busy: busy(), principles: card?.principles ?? [] });

function keep(changed) {
  if (!talks.save(changed)) trouble(say("full"));
}

function trouble(message) {
  byId("trouble").textContent = message;
  byId("trouble").hidden = !message;
}

const tell = (message) => (byId("status").textContent = message);

// ---- what is shown

function render() {
  const focused = document.activeElement?.id;
  const list = byId("turns");
  const low = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.replaceChildren(...conversation(talk, talks.path(talk), context(), act));
  if (low) list.scrollTop = list.scrollHeight;
  if (focused && document.activeElement?.id !== focused) byId(focused)?.focus({ preventScroll: true });
  byId("title").textContent = talk.title || say("untitled");
  document.title = talk.title ? `${talk.title} – Conclave` : "Conclave";
  byId("send").hidden = busy();
  byId("stop").hidden = !busy();
  renderTalks();
}

function renderTalks() {
  const words = byId("search").value.trim();
  const found = talks.all().filter((each) => !words || talks.has(each, words));
  const rows = found.map((each) =>
    el("li", { class: each.id === talk.id ? "row current" : "row" },
      el("button", { class: "open", "aria-current": each.id === talk.id ? "true" : false, onclick: () => open(each) }, each.title || say("untitled")),
      el("button", { class: "icon", "aria-label": `${say("delete")}: ${each.title}`, title: say("delete"), onclick: () => forget(each) }, sign("delete"))));
  byId("talks").replaceChildren(...(rows.length || !words ? rows : [el("li", { class: "small" }, say("nothing"))]));
}

function open(other) {
  talk = [...streams.values()].find((stream) => stream.talk.id === other.id)?.talk ?? other;
  side(false);
  render();
  byId("turns").scrollTop = byId("turns").scrollHeight;
  byId("ask").focus();
}

function side(shown) {
  byId("side").classList.toggle("shown", shown);
  byId("menu").setAttribute("aria-expanded", String(shown));
  if (shown) byId("search").focus();
}

// ---- answers

async function answer(of, turn, { goesOn = false, other = 0, taken = null } = {}) {
  const { temperature, top_p, max_tokens, seed } = of.sampling;
  const drawn = seed === null ? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 : seed + other;
  if (!taken) turn.sampling = { temperature, top_p, seed: drawn, ...(max_tokens && { max_tokens }) };
  const asked = talks.messages(of, of.turns[turn.parent]);
  const body = { model: card?.id ?? "", messages: asked, ...turn.sampling };
  if (goesOn) Object.assign(body, { messages: [...asked, { role: "assistant", content: turn.content }], continue_final_message: true });
  const stopper = new AbortController();
  streams.set(turn.id, { talk: of, stop: () => stopper.abort() });
  Object.assign(turn, { state: "streams", finish: null, error: null, tokens: null });
  render();
  const began = performance.now();
  let first = 0, saved = began, drawing = false;
  const draw = () => {
    drawing = false;
    const node = byId(turn.id)?.querySelector(".text"), list = byId("turns");
    if (!node || turn.state !== "streams") return;
    const low = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
    node.replaceWith(text(turn));
    if (low) list.scrollTop = list.scrollHeight;
  };
  try {
    if (!card) body.model = (await learn()).id;
    for await (const event of taken ? api.resumed(taken, stopper.signal) : api.streamed(body, stopper.signal)) {
      Object.assign(turn, { model: event.model, version: event.system_fingerprint, stream: { id: event.id, next: event.number + 1 } });
      if (event.usage) Object.assign(turn, { tokens: event.usage.completion_tokens, seconds: (performance.now() - first) / 1000 });
      const [choice] = event.choices;
      if (!choice) continue;
      if (choice.delta.content) {
        first ||= performance.now();
        turn.first = (first - began) / 1000;
        turn.content += choice.delta.content;
        if (!drawing) drawing = Boolean(requestAnimationFrame(draw));
        if (performance.now() - saved > SAVE_EVERY) {
          saved = performance.now();
          keep(of);
        }
      }
      turn.finish = choice.finish_reason ?? turn.finish;
    }
    turn.state = "done";
    delete turn.stream;
    tell(say("finished"));
  } catch (error) {
    if (leaving) return; // it is this page that ends, not the answer: the next one offers to go on
    turn.state = stopper.signal.aborted ? "stopped" : error instanceof api.Gone ? "interrupted" : "failed";
    turn.error = error.message;
    tell(say(turn.state, error.message));
  } finally {
    streams.delete(turn.id);
    if (!leaving) {
      keep(of);
      if (of.id === talk.id) render();
    }
  }
}

function takeUp() {
  const left = JSON.parse(sessionStorage.getItem(LEFT) ?? "[]");
  sessionStorage.removeItem(LEFT);
  for (const [id, name] of left) {
    const of = id === talk.id ? talk : ([...streams.values()].find((stream) => stream.talk.id === id)?.talk ?? talks.all().find((each) => each.id === id));
    const turn = of?.turns[name];
    if (turn?.stream && turn.state === "interrupted") answer(of, turn, { taken: turn.stream });
  }
}

async function learn() {
  card = await api.model();
  byId("model").textContent = card.id;
  return card;
}

function ask(parent, words) {
  const turn = talks.add(talk, parent, "user", words);
  const pair = byId("two").checked ? 2 : 1;
  const made = Array.from({ length: pair }, () => talks.add(talk, turn.id, "assistant", ""));
  if (pair === 2) match(made);
  keep(talk);
  const of = talk;
  byId("turns").scrollTop = byId("turns").scrollHeight;
  made.forEach((each, other) => answer(of, each, { other }));
  byId("turns").scrollTop = byId("turns").scrollHeight;
}

function match(pair) {
  const ids = pair.map((turn) => turn.id);
  pair.forEach((turn, place) => Object.assign(turn, { rival: ids[1 - place], pair: ids, settled: false }));
}

// ---- votes

async function vote(of, turns, kind, more) {
  const id = talks.name(16);
  const chosen = { id, kind, visible_to: preferences.trains ? "training" : "me", ...more };
  try {
    await api.vote(ballot(of, turns, Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== "" && value !== undefined))));
  } catch (error) {
    trouble(say("unsent", error.message));
    return false;
  }
  trouble("");
  tell(say("sent"));
  for (const turn of turns) turn.votes[kind] = { id, ...more };
  keep(of);
  render();
  return true;
}

async function withdraw(of, turn, kind) {
  try {
    await api.withdraw(turn.votes[kind].id);
  } catch (error) {
    trouble(say("unsent", error.message));
    return false;
  }
  delete turn.votes[kind];
  keep(of);
  tell(say("withdrawn"));
  render();
  return true;
}

async function forget(gone) {
  if (!confirm(say("delete_sure"))) return;
  for (const stream of streams.values()) if (stream.talk.id === gone.id) stream.stop();
  if (Object.values(gone.turns).some((turn) => Object.keys(turn.votes).length)) {
    try {
      await api.forget(gone.id);
    } catch (error) {
      trouble(say("away", error.message)); // its votes are still there: so is it, to be deleted again
      return;
    }
  }
  talks.remove(gone);
  if (gone.id === talk.id) talk = talks.all()[0] ?? talks.newTalk(talk);
  render();
}

const act = {
  again: () => render(),
  show(turn) {
    talk.chosen[turn.parent ?? "root"] = turn.id;
    keep(talk);
    render();
  },
  edit: (turn, words) => ask(turn.parent, words),
  retry: (turn) => answer(talk, talks.add(talk, turn.parent, "assistant", "")),
  goOn: (turn) => answer(talk, turn, { goesOn: true }),
  compare(turn) {
    const other = talks.add(talk, turn.parent, "assistant", "");
    match([turn, other]);
    answer(talk, other, { other: 1 });
  },
  async thumb(turn, kind) {
    const before = turn.votes.up ? "up" : turn.votes.down ? "down" : null;
    if (before && !(await withdraw(talk, turn, before))) return;
    if (before !== kind) await vote(talk, [turn], kind, {});
  },
  async reason(turn, kind, principle, comment) {
    if (await withdraw(talk, turn, kind)) await vote(talk, [turn], kind, { principle, comment });
  },
  correct: (turn, correction, principle) =>
    correction === turn.content ? render() : vote(talk, [turn], "correction", { correction, principle }),
  async pick(pair, better, principle) {
    const of = talk;
    if (await vote(of, pair, "better", { better, principle })) settle(of, pair, pair[better]);
  },
  settle: (pair) => settle(talk, pair, pair[0]),
};

function settle(of, pair, chosen) {
  for (const turn of pair) turn.settled = true;
  of.chosen[chosen.parent] = chosen.id;
  keep(of);
  render();
}

// ---- files

function exported() {
  const url = URL.createObjectURL(new Blob([JSON.stringify({ conclave: 1, talks: talks.all() }, null, 1)], { type: "application/json" }));
  el("a", { href: url, download: `conclave-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function imported(file) {
  try {
    const found = JSON.parse(await file.text()).talks.map(talks.checked);
    if (!found.length || found.includes(null)) throw new Error(file.name);
    for (const each of found) keep(each);
    tell(say("imported", found.length));
    trouble("");
    open(found[0]);
  } catch (error) {
    trouble(say("no_file", error.message));
  }
}

// ---- settings

function showSettings() {
  byId("system").value = talk.system;
  for (const knob of ["temperature", "top_p", "max_tokens", "seed"]) byId(knob).value = talk.sampling[knob] ?? "";
  byId("language").value = speak(preferences.language);
  byId("theme").value = preferences.theme;
  byId("trains").checked = preferences.trains;
  byId("dialog").showModal();
}

function takeSettings() {
  talk.system = byId("system").value;
  for (const knob of ["temperature", "top_p", "max_tokens", "seed"]) {
    const node = byId(knob), empty = node.value === "" || !node.checkValidity();
    if (!empty) talk.sampling[knob] = Number(node.value);
    else if (knob === "max_tokens" || knob === "seed") talk.sampling[knob] = null;
  }
  Object.assign(preferences, { language: byId("language").value, theme: byId("theme").value, trains: byId("trains").checked });
  localStorage.setItem(PREFERENCES, JSON.stringify(preferences));
  if (Object.keys(talk.turns).length) keep(talk);
  dress();
}

function dress() {
  speak(preferences.language);
  document.documentElement.dataset.theme = preferences.theme;
  render();
}

// ---- what the user does

function sent() {
  const box = byId("ask"), words = box.value.trim();
  const shown = talks.path(talk);
  if (!words || busy()) return;
  if (shown.at(-1)?.rival && !shown.at(-1).settled) return byId(`${shown.at(-1).id}-pick`)?.focus();
  box.value = "";
  grow();
  ask(shown.at(-1)?.id ?? null, words);
}

function grow() {
  const box = byId("ask");
  box.rows = Math.min(10, Math.max(1, box.value.split("\n").length));
}

const stop = () => streams.forEach((stream) => stream.talk.id === talk.id && stream.stop());

byId("composer").addEventListener("submit", (event) => (event.preventDefault(), sent()));
byId("ask").addEventListener("input", grow);
byId("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sent();
  } else if (event.key === "ArrowUp" && !byId("ask").value) {
    const last = talks.path(talk).findLast((turn) => turn.role === "user");
    if (last && !busy()) {
      event.preventDefault();
      byId(`${last.id}-edit`)?.click();
    }
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("dialog").open) (stop(), side(false));
  if (event.key === "k" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), side(true), byId("search").focus());
});
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", () => open(talks.newTalk(talk)));
byId("search").addEventListener("input", renderTalks);
byId("menu").addEventListener("click", () => side(true));
byId("close").addEventListener("click", () => (side(false), byId("menu").focus()));
byId("export").addEventListener("click", exported);
byId("import").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async (event) => {
  if (event.target.files[0]) await imported(event.target.files[0]);
  event.target.value = "";
});
byId("settings").addEventListener("click", showSettings);
byId("dialog").addEventListener("close", takeSettings);
window.addEventListener("storage", (event) => event.key?.startsWith("conclave.talk.") && renderTalks());
window.addEventListener("pagehide", () => {
  leaving = true;
  for (const stream of streams.values()) talks.save(stream.talk);
  sessionStorage.setItem(LEFT, JSON.stringify([...streams].map(([turn, stream]) => [stream.talk.id, turn])));
});
window.addEventListener("pageshow", () => (leaving = false));

dress();
byId("turns").scrollTop = byId("turns").scrollHeight;
byId("ask").focus();
takeUp();
learn().then(render, (error) => trouble(say("away", error.message)));

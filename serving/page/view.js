// One turn of a conversation as elements, with the buttons that act on it; `act` has what each does.

import { copy, el, sign } from "./dom.js";
import { markdown } from "./markdown.js";
import { after, messages } from "./talks.js";
import { named, say } from "./words.js";

export function conversation(talk, shown, context, act) {
  if (!shown.length) return [el("p", { class: "welcome" }, say("welcome"))];
  return shown.map((turn) => {
    const rival = turn.rival && talk.turns[turn.rival];
    return rival && !turn.settled ? duel(talk, [talk.turns[turn.pair[0]], talk.turns[turn.pair[1]]], context, act) : one(talk, turn, context, act);
  });
}

function one(talk, turn, context, act) {
  const yours = turn.role === "user";
  return el("article", { class: `turn ${turn.role}`, id: turn.id, "aria-label": say(yours ? "you" : "model") },
    el("div", { class: "who" }, yours ? say("you") : turn.model ?? say("model")),
    text(turn),
    note(turn, context, act),
    el("div", { class: "tools" }, branches(talk, turn, act), ...(yours ? userTools(turn, context, act) : tools(talk, turn, context, act))));
}

export function text(turn) {
  const node = el("div", { class: "text", "aria-busy": turn.state === "streams" ? "true" : false });
  if (turn.role === "user") node.textContent = turn.content;
  else node.append(turn.content || turn.state !== "streams" ? markdown(turn.content) : say("thinking"));
  return node;
}

const button = (turn, what, press, more = {}) =>
  el("button", { type: "button", id: `${turn.id}-${what}`, onclick: press, ...more }, say(what));

const icon = (turn, what, shown, press, more = {}) =>
  el("button", { type: "button", id: `${turn.id}-${what}`, class: "icon", "aria-label": say(what), title: say(what), onclick: press, ...more }, shown);

function branches(talk, turn, act) {
  const all = after(talk, turn.parent);
  if (all.length < 2) return null;
  const place = all.indexOf(turn);
  const step = (by) => () => act.show(all[place + by]);
  return el("span", { class: "branches", role: "group", "aria-label": say("branch", place + 1, all.length) },
    icon(turn, "before", "‹", step(-1), { disabled: place === 0 }),
    el("span", { "aria-hidden": "true" }, `${place + 1}/${all.length}`),
    icon(turn, "after", "›", step(1), { disabled: place === all.length - 1 }));
}

function userTools(turn, context, act) {
  return [icon(turn, "edit", sign("edit"), () => edit(turn, context, act), { disabled: context.busy }), icon(turn, "copy", sign("copy"), () => copy(turn.content))];
}

function tools(talk, turn, context, act) {
  if (turn.state === "streams") return [];
  const pressed = (kind) => ({ "aria-pressed": String(Boolean(turn.votes[kind])) });
  const rate = turn.tokens > 1 && turn.seconds > 0 ? ((turn.tokens - 1) / turn.seconds).toFixed(1) : "–";
  const thumb = turn.votes.up ? "up" : turn.votes.down ? "down" : null;
  return [
    icon(turn, "copy", sign("copy"), () => copy(turn.content)),
    icon(turn, "retry", sign("retry"), () => act.retry(turn), { disabled: context.busy }),
    icon(turn, "compare", sign("compare"), () => act.compare(turn), { disabled: context.busy || !turn.content }),
    icon(turn, "up", sign("up"), () => act.thumb(turn, "up"), pressed("up")),
    icon(turn, "down", sign("down"), () => act.thumb(turn, "down"), pressed("down")),
    button(turn, "better_answer", () => correct(turn, context, act), { disabled: !turn.content }),
    turn.votes.correction && el("span", { class: "small" }, say("corrected")),
    turn.tokens && el("span", { class: "small rate" }, say("rate", turn.tokens, rate, turn.first?.toFixed(2))),
    thumb && reason(turn, thumb, context, act),
  ];
}

function note(turn, context, act) {
  const why = { interrupted: say("interrupted"), stopped: say("stopped"), failed: say("failed", turn.error) }[turn.state];
  const said = why ?? (turn.finish === "length" ? say("length") : "");
  if (!said) return null;
  const goes = act && turn.content && button(turn, "go_on", () => act.goOn(turn), { disabled: context.busy });
  return el("p", { class: turn.state === "failed" ? "note bad" : "note" }, said, " ", goes);
}

// A form in the place of a turn's tools: its fields, a button that sends and one that takes it back.
function form(turn, label, value, send, act, more = []) {
  const area = el("textarea", { rows: Math.min(12, value.split("\n").length + 1), "aria-label": label });
  area.value = value;
  const close = () => act.again(turn);
  const made = el("form", { class: "inner" }, area, ...more,
    el("div", { class: "row" },
      el("button", { type: "submit", class: "strong" }, send.words),
      el("button", { type: "button", onclick: close }, say("cancel"))));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) send.go(area.value);
  });
  made.addEventListener("keydown", (event) => event.key === "Escape" && (event.stopPropagation(), close()));
  document.getElementById(turn.id).querySelector(".tools").replaceChildren(made);
  area.focus();
  area.setSelectionRange(value.length, value.length);
}

function edit(turn, context, act) {
  form(turn, say("edit"), turn.content, { words: say("save"), go: (value) => act.edit(turn, value) }, act);
}

function principles(context) {
  const options = context.principles.map((each) => el("option", { value: each }, named(each)));
  return el("select", {}, el("option", { value: "" }, say("none")), ...options);
}

function correct(turn, context, act) {
  const select = principles(context);
  const more = [el("label", { class: "small" }, say("principle"), " ", select)];
  const go = (value) => act.correct(turn, value, select.value);
  form(turn, say("correction"), turn.content, { words: say("send_correction"), go }, act, more);
}

function reason(turn, thumb, context, act) {
  const select = principles(context);
  const comment = el("input", { type: "text", maxlength: 4000, "aria-label": say("comment"), placeholder: say("comment") });
  select.value = turn.votes[thumb].principle ?? "";
  comment.value = turn.votes[thumb].comment ?? "";
  const send = () => act.reason(turn, thumb, select.value, comment.value.trim());
  return el("details", { class: "reason" },
    el("summary", { id: `${turn.id}-reason` }, say("reason")),
    el("div", { class: "row" },
      el("label", { class: "small" }, say("principle"), " ", select), comment,
      el("button", { type: "button", onclick: send }, say("send_reason"))));
}

// Two answers side by side, of which one is picked; until then the conversation goes on with neither.
function duel(talk, pair, context, act) {
  const select = principles(context);
  const ready = pair.every((turn) => turn.state !== "streams" && turn.content) && pair[0].content !== pair[1].content;
  const sides = pair.map((turn, place) =>
    el("article", { class: "turn assistant", id: turn.id, "aria-label": `${say("model")} ${place + 1}` },
      el("div", { class: "who" }, `${turn.model ?? say("model")} ${place + 1}`),
      text(turn), note(turn, context),
      el("div", { class: "tools" },
        el("button", { type: "button", class: "strong", id: `${turn.id}-pick`, disabled: !ready, onclick: () => act.pick(pair, place, select.value) }, say("pick")))));
  const skip = el("button", { type: "button", disabled: pair.some((turn) => turn.state === "streams"), onclick: () => act.settle(pair) }, say("neither"));
  return el("section", { class: "duel", "aria-label": say("which") },
    el("div", { class: "sides" }, ...sides),
    el("div", { class: "row" }, el("label", { class: "small" }, say("which"), " ", select), skip));
}

// What /v1/feedback takes of a turn.
export function ballot(talk, turns, more) {
  const given = turns.map((turn) => ({
    text: turn.content, finished: turn.state === "done" && turn.finish !== "length",
    ...(turn.model && { model: turn.model }), ...(turn.version && { version: turn.version }), sampling: turn.sampling ?? {},
  }));
  return { conversation: talk.id, messages: messages(talk, talk.turns[turns[0].parent]), answers: given, ...more };
}

// Markdown to elements. Text stays text: HTML in an answer is shown and never read, an image is a link to it.

import { copy, el } from "./dom.js";
import { say } from "./words.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])\s*(\1\s*){2,}$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?/;
const ROW = /^\s*\|.*\|\s*$/;
const BETWEEN = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 8; // quotes and lists within each other

export function markdown(text) {
  const made = document.createDocumentFragment();
  made.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return made;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) at++;
    else if ((found = FENCE.exec(line))) at = fenced(lines, at, found, made);
    else if ((found = HEADING.exec(line))) {
      made.push(el(`h${Math.min(6, found[1].length + 2)}`, {}, ...inline(found[2])));
      at++;
    } else if (RULE.test(line)) {
      made.push(el("hr"));
      at++;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      const end = until(lines, at, (each) => !QUOTE.test(each));
      made.push(el("blockquote", {}, ...blocks(lines.slice(at, end).map((each) => each.replace(QUOTE, "")), depth + 1)));
      at = end;
    } else if (ITEM.test(line) && depth < DEEPEST) at = list(lines, at, depth, made);
    else if (ROW.test(line) && BETWEEN.test(lines[at + 1] ?? "")) at = table(lines, at, made);
    else {
      const end = Math.max(at + 1, until(lines, at, (each) => begins(each)));
      made.push(el("p", {}, ...broken(lines.slice(at, end))));
      at = end;
    }
  }
  return made;
}

const begins = (line) =>
  !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function until(lines, at, ends) {
  while (at < lines.length && !ends(lines[at])) at++;
  return at;
}

function fenced(lines, at, [, fence, language], made) {
  const closes = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
  const end = until(lines, at + 1, closes);
  const text = lines.slice(at + 1, end).join("\n");
  const button = el("button", { type: "button", class: "copy", onclick: () => copied(button, text) }, say("copy"));
  const head = el("div", { class: "code-head" }, el("span", {}, language || say("code")), button);
  made.push(el("div", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, text))));
  return end + 1;
}

async function copied(button, text) {
  await copy(text);
  button.textContent = say("copied");
}

function list(lines, at, depth, made) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  let start = at;
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    const mine = found && found[1].length <= indent.length + 1 && /\d/.test(found[2]) === ordered;
    if (mine) items.push([found[3]]);
    else if (!lines[at].trim()) {
      const next = lines[at + 1] ?? "";
      if (!ITEM.test(next) && !/^\s{2,}\S/.test(next)) break;
      items.at(-1).push("");
    } else if (/^\s{2,}/.test(lines[at]) || !begins(lines[at])) {
      items.at(-1).push(lines[at].replace(new RegExp(`^\\s{0,${indent.length + mark.length + 1}}`), ""));
    } else break;
    at++;
  }
  const first = ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {};
  made.push(el(ordered ? "ol" : "ul", first, ...items.map((item) => el("li", {}, ...tight(blocks(item, depth + 1))))));
  return Math.max(at, start + 1);
}

// An item of one paragraph is that paragraph's text.
const tight = (nodes) => nodes.flatMap((node, place) => (node.tagName === "P" && !place ? [...node.childNodes] : [node]));

function table(lines, at, made) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
  const end = until(lines, at + 2, (line) => !ROW.test(line));
  const row = (line, tag) => el("tr", {}, ...cells(line).map((cell) => el(tag, {}, ...cell)));
  const head = el("thead", {}, row(lines[at], "th"));
  const body = el("tbody", {}, ...lines.slice(at + 2, end).map((line) => row(line, "td")));
  made.push(el("div", { class: "wide", tabindex: "0" }, el("table", {}, head, body)));
  return end;
}

const broken = (lines) => lines.flatMap((line, place) => (place ? [el("br"), ...inline(line.trim())] : inline(line.trim())));

const INLINE = [
  [/^\\([\\`*_{}[\]()#+\-.!|~<>])/, (found) => [found[1]]],
  [/^(`+)([^`]|[^`].*?[^`])\1(?!`)/, (found) => [el("code", {}, found[2].trim())]],
  [/^!?\[([^\]]*)\]\(\s*([^\s()]+(?:\([^\s()]*\)[^\s()]*)*)(?:\s+"[^"]*")?\s*\)/, (found) => link(found[2], found[1] || found[2], found[0])],
  [/^<(https?:\/\/[^\s<>]+)>/, (found) => link(found[1], found[1], found[0])],
  [/^https?:\/\/[^\s<>"'，。；、）】]+[^\s<>"'，。；、）】.,;:!?)\]]/, (found) => link(found[0], found[0], found[0])],
  [/^\*\*(?=\S)(.+?\S|\S)\*\*/, (found) => [el("strong", {}, ...inline(found[1]))]],
  [/^__(?=\S)(.+?\S|\S)__(?!\w)/, (found) => [el("strong", {}, ...inline(found[1]))]],
  [/^~~(?=\S)(.+?)~~/, (found) => [el("del", {}, ...inline(found[1]))]],
  [/^\*(?=[^\s*])([^*]*[^\s*]|[^\s*])\*(?!\*)/, (found) => [el("em", {}, ...inline(found[1]))]],
];
const PLAIN = /^(?:[^\\`!\[<h*_~]+|[^])/; // as far as nothing can begin, or one character

function inline(text) {
  const made = [];
  while (text) {
    const [pattern, make] = INLINE.find(([each]) => each.test(text)) ?? [PLAIN, (found) => [found[0]]];
    const found = pattern.exec(text);
    for (const node of make(found)) {
      if (typeof node === "string" && typeof made.at(-1) === "string") made.push(made.pop() + node);
      else made.push(node);
    }
    text = text.slice(found[0].length);
  }
  return made;
}

// Only to where a link of an answer may lead; whatever else stands there stays text.
function link(address, text, written) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return [written];
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return [written];
  return [el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, text)];
}

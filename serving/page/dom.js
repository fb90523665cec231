// Makes elements. Nothing here or elsewhere on the page turns text into HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Drawn here: a font with such signs is not everywhere.
const SIGNS = {
  copy: "M9 9h11v11H9z M5 15H4V4h11v1",
  retry: "M20 11a8 8 0 1 0-2.3 6.3 M20 4v7h-7",
  compare: "M4 5h7v14H4z M13 5h7v14h-7z",
  up: "M7 11v9H4v-9z M7 11l4-8c1.5 0 2.5 1 2.5 2.5V9H19a2 2 0 0 1 2 2.3l-1.2 7A2 2 0 0 1 17.8 20H7",
  down: "M17 13V4h3v9z M17 13l-4 8c-1.5 0-2.5-1-2.5-2.5V15H5a2 2 0 0 1-2-2.3l1.2-7A2 2 0 0 1 6.2 4H17",
  edit: "M4 20h4L19 9l-4-4L4 16z M13 7l4 4",
  delete: "M4 7h16 M9 7V4h6v3 M6 7l1 13h10l1-13 M10 11v5 M14 11v5",
};

export function sign(name) {
  const node = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const svg = node("svg", { viewBox: "0 0 24 24", width: 18, height: 18, "aria-hidden": "true", class: "sign" });
  svg.append(node("path", { d: SIGNS[name] }));
  return svg;
}

export const byId = (id) => document.getElementById(id);

// Where a page is no secure context (http on a network), the browser has no clipboard for it.
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

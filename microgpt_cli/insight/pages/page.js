"use strict";
// What every page has: its data, the switch between light and dark, and the one way to make elements.
const data = JSON.parse(document.getElementById("data").textContent);

// el("td", {class: "n", onclick: f}, "text", child, …): text is text and never HTML.
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "rect", "circle", "text", "polyline"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

let printing = false; // paper is white
function isDark() {
  if (printing) return false;
  const root = document.documentElement.classList;
  return root.contains("dark") || (!root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
}

// Pages that draw on a canvas listen for "theme" on the document and draw anew.
function setTheme(name) {
  document.documentElement.classList.remove("light", "dark");
  if (name) document.documentElement.classList.add(name);
  document.dispatchEvent(new Event("theme"));
}

function remembered(name) { // a browser may refuse a page from the disk any storage
  try {
    if (name) localStorage.setItem("microgpt-theme", name);
    return localStorage.getItem("microgpt-theme");
  } catch { return null; }
}

if (["light", "dark"].includes(remembered())) setTheme(remembered());
document.getElementById("theme").addEventListener("click", () => {
  setTheme(isDark() ? "light" : "dark");
  remembered(isDark() ? "dark" : "light");
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
for (const [event, now] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => { printing = now; document.dispatchEvent(new Event("theme")); });
}

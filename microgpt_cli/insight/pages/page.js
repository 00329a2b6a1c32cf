"use strict";
// Common code of all pages: the data, the theme switch, and the creation of elements.
const data = JSON.parse(document.getElementById("data").textContent);

// el("td", {class: "n", onclick: f}, "text", child, …): text is never parsed as HTML.
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

let printing = false; // print uses the light theme
function isDark() {
  if (printing) return false;
  const root = document.documentElement.classList;
  return root.contains("dark") || (!root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
}

// Pages that draw on a canvas redraw on the event "theme" of the document.
function setTheme(name) {
  document.documentElement.classList.remove("light", "dark");
  if (name) document.documentElement.classList.add(name);
  document.dispatchEvent(new Event("theme"));
}

function savedTheme(name) { // a browser may refuse storage to a local file
  try {
    if (name) localStorage.setItem("microgpt-theme", name);
    return localStorage.getItem("microgpt-theme");
  } catch { return null; }
}

if (["light", "dark"].includes(savedTheme())) setTheme(savedTheme());
document.getElementById("theme").addEventListener("click", () => {
  setTheme(isDark() ? "light" : "dark");
  savedTheme(isDark() ? "dark" : "light");
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
for (const [event, now] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => { printing = now; document.dispatchEvent(new Event("theme")); });
}

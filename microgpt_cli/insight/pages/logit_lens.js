
// The page of `microgpt inspect`. at: the selected position; layer, head: the selected head.
const T = data.ids.length, L = data.layers, H = data.heads, TRIANGLE = T * (T + 1) / 2;
const weights = Uint8Array.from(atob(data.attention), char => char.charCodeAt(0));
const own = data.predictions[L]; // the model's output
const find = id => document.getElementById(id);
let at = T - 1, layer = L - 1, head = 0, column = null, relative = false;

const weight = (l, h, from, to) => (weights[(l * H + h) * TRIANGLE + from * (from + 1) / 2 + to] / 255) ** 2;
const name = token => data.names[token];
const layerName = l => l === 0 ? "embedding" : `layer ${l}`;

// The colour of a value from 0 to 1, on a square root scale, for the light and the dark theme.
const RAMPS = {
  false: [[255, 255, 255], [143, 184, 232], [31, 95, 191], [9, 28, 74]],
  true: [[29, 32, 36], [38, 78, 140], [200, 98, 110], [255, 226, 150]],
};
function heat(share) {
  const ramp = RAMPS[isDark()], x = Math.sqrt(Math.min(1, share)) * (ramp.length - 1), i = Math.min(Math.floor(x), ramp.length - 2);
  return ramp[i].map((low, c) => Math.round(low + (ramp[i + 1][c] - low) * (x - i)));
}
const rgb = colour => `rgb(${colour.join(" ")})`;
const ink = colour => 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140 ? "#15171a" : "#ffffff";

function bars(guess, came) {
  const rows = guess.tokens.map((token, i) => {
    const bar = el("i", {style: `width:${100 * guess.probs[i]}%`});
    return el("div", {class: token === came ? "bar came" : "bar"}, el("span", {}, name(token)), el("span", {}, bar), el("span", {}, percent(guess.probs[i])));
  });
  return el("div", {id: "bars"}, ...rows);
}

const textSpans = flow(find("text"), choose, (span, i) => { span.style.background = lossColour(i ? own.losses[i - 1] : undefined); });
const shadedSpans = flow(find("shaded"), choose, () => {});

function showNext() {
  const came = data.ids[at + 1], loss = own.losses[at], read = data.ids.slice(Math.max(0, at - 23), at + 1).map(name).join("");
  const words = el("div", {},
    el("p", {}, "After ", el("code", {}, (at > 23 ? "…" : "") + read), " the model predicts:"),
    came === undefined ? el("p", {class: "quiet"}, "End of the text: these are the predictions for the next token.")
      : el("p", {}, "Actual next token: ", el("b", {class: "mono"}, name(came)), `, probability ${percent(Math.exp(-loss))}, loss ${loss.toFixed(3)} nats.`),
    el("p", {class: "quiet"}, `Entropy ${own.entropy[at].toFixed(3)} nats, equivalent to ${Math.exp(own.entropy[at]).toFixed(1)} equally likely tokens.`));
  find("next").replaceChildren(words, bars({tokens: own.tokens[at], probs: own.probs[at]}, came));
}

const lensCells = [];
function buildLens() {
  const row = (kind, first, cells) => el("tr", {}, el("th", {}, first), ...cells.map((cell, i) => el(kind, {"data-at": i}, cell)));
  const body = el("tbody");
  data.predictions.forEach((guess, l) => body.append(row("td", layerName(l), guess.tokens.map(tokens => name(tokens[0])))));
  const table = el("table", {}, el("thead", {}, row("th", "input", data.ids.map(name))), body);
  table.addEventListener("click", event => {
    const chosen = event.target.closest("[data-at]");
    if (chosen) choose(Number(chosen.dataset.at));
  });
  find("lens").replaceChildren(table);
  lensCells.push(...[...table.rows].map(line => [...line.cells].slice(1)));
}
function paintLens() {
  data.predictions.forEach((guess, l) => lensCells[l + 1].forEach((cell, i) => {
    const colour = heat(guess.probs[i][0]);
    cell.style.background = rgb(colour);
    cell.style.color = ink(colour);
    cell.title = `${layerName(l)}: ${name(guess.tokens[i][0])} ${percent(guess.probs[i][0])}`;
    cell.classList.toggle("came", guess.tokens[i][0] === data.ids[i + 1]);
  }));
}

function showLayers() {
  const came = data.ids[at + 1], count = Math.min(5, own.tokens[0].length);
  const head = ["", ...Array.from({length: count}, (_, i) => `${i + 1}.`), came === undefined ? "" : "loss"];
  const rows = data.predictions.map((guess, l) => el("tr", {}, el("th", {}, layerName(l)),
    ...guess.tokens[at].slice(0, count).map((token, i) => el("td", {class: token === came ? "came" : ""},
      el("code", {}, name(token)), ` ${percent(guess.probs[at][i])}`)),
    el("td", {class: "n"}, came === undefined ? "" : guess.losses[at].toFixed(3))));
  find("layers").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...head.map(text => el("th", {}, text)))), el("tbody", {}, ...rows)));
}

function draw(canvas, l, h) {
  canvas.width = canvas.height = T;
  const context = canvas.getContext("2d"), image = context.createImageData(T, T);
  const ramp = Array.from({length: 256}, (_, byte) => heat((byte / 255) ** 2));
  let start = (l * H + h) * TRIANGLE;
  for (let from = 0; from < T; start += ++from) {
    const row = weights.subarray(start, start + from + 1), most = relative ? row.reduce((a, b) => Math.max(a, b)) : 255;
    row.forEach((byte, to) => image.data.set([...ramp[Math.round(255 * byte / most)], 255], 4 * (from * T + to)));
  }
  context.putImageData(image, 0, 0);
}

const buttons = [];
function buildHeads() {
  find("heads").style.gridTemplateColumns = `auto repeat(${H}, minmax(44px, 7.5rem))`;
  for (let l = 0; l < L; l++) {
    find("heads").append(el("span", {}, `layer ${l + 1}`));
    for (let h = 0; h < H; h++) {
      const pattern = data.patterns[l][h];
      const words = pattern === null ? "" : pattern.name === "spread" ? `${pattern.distance.toFixed(0)} back` : `${pattern.name} ${percent(pattern[pattern.name])}`;
      const button = el("button", {type: "button", onclick: () => chooseHead(l, h), "aria-label": `layer ${l + 1}, head ${h + 1}: ${words}`}, el("canvas"), words);
      buttons.push(button);
      find("heads").append(button);
    }
  }
}
function drawHeads() {
  buttons.forEach((button, i) => draw(button.querySelector("canvas"), Math.floor(i / H), i % H));
}

function showHead() {
  const pattern = data.patterns[layer][head];
  find("chosen").textContent = `Layer ${layer + 1}, head ${head + 1}`;
  draw(find("map"), layer, head);
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === layer * H + head));
  find("mapbox").title = pattern === null ? "" : `on average ${percent(pattern.previous)} to the previous token, ${percent(pattern.itself)} to itself, ${percent(pattern.first)} to the first, mean distance ${pattern.distance.toFixed(1)} tokens`;
}

function showAttention() {
  const row = Array.from({length: at + 1}, (_, to) => weight(layer, head, at, to));
  shadedSpans.forEach((span, i) => {
    const colour = i <= at ? heat(row[i] / (relative ? Math.max(...row) : 1)) : null;
    span.style.background = colour ? rgb(colour) : "none";
    span.style.color = colour ? ink(colour) : "";
    span.classList.toggle("later", i > at);
    span.classList.toggle("at", i === at);
    span.title = i <= at ? percent(row[i]) : "";
  });
  const best = row.map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const target = column !== null && column <= at ? `${percent(row[column])} to ${place(column)}` : best.map(([share, i]) => `${percent(share)} to ${place(i)}`).join(", ");
  find("readout").textContent = `From ${place(at)} this head attends: ${target}.`;
  Object.assign(find("row").style, {top: `${100 * at / T}%`, height: `${Math.max(100 / T, 0.5)}%`});
  find("column").hidden = column === null || column > at;
  if (column !== null) Object.assign(find("column").style, {left: `${100 * column / T}%`, width: `${Math.max(100 / T, 0.5)}%`});
}
const place = i => `“${name(data.ids[i])}” (${i + 1})`;

function choose(position, to = null) {
  at = Math.max(0, Math.min(T - 1, position));
  column = to;
  textSpans.forEach((span, i) => { span.classList.toggle("at", i === at); span.setAttribute("aria-selected", i === at); });
  find("text").setAttribute("aria-activedescendant", `text-${at}`);
  lensCells.forEach(line => line.forEach((cell, i) => cell.classList.toggle("at", i === at)));
  showNext();
  showLayers();
  showAttention();
  const loss = at ? `loss ${own.losses[at - 1].toFixed(2)}` : "not predicted";
  find("where").replaceChildren(`${at + 1} of ${T} `, el("b", {class: "mono"}, name(data.ids[at])), ` ${loss}; next `, el("b", {class: "mono"}, name(own.tokens[at][0])), ` ${percent(own.probs[at][0])}`);
  reveal(find("text"), textSpans[at], "Top", "Height");
  reveal(find("lens"), lensCells[0][at], "Left", "Width");
}

function chooseHead(l, h) {
  layer = (l + L) % L;
  head = (h + H) % H;
  showHead();
  showAttention();
}

find("map").addEventListener("click", event => {
  const box = find("map").getBoundingClientRect();
  const cell = (x, size) => Math.max(0, Math.min(T - 1, Math.floor(x / size * T)));
  choose(cell(event.clientY - box.top, box.height), cell(event.clientX - box.left, box.width));
});
find("relative").addEventListener("click", event => {
  relative = !relative;
  event.currentTarget.setAttribute("aria-pressed", relative);
  drawHeads();
  showHead();
  showAttention();
});
find("back").addEventListener("click", () => choose(at - 1));
find("on").addEventListener("click", () => choose(at + 1));
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const inHeads = find("heads").contains(document.activeElement), inText = document.activeElement === find("text");
  const headMoves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
  const moves = {ArrowLeft: at - 1, ArrowRight: at + 1, ...(inText ? {Home: 0, End: T - 1} : {})};
  if (inHeads && event.key in headMoves) {
    const [dl, dh] = headMoves[event.key];
    chooseHead(layer + dl, head + dh);
    buttons[layer * H + head].focus();
  } else if (!inHeads && event.key in moves) choose(moves[event.key]);
  else return;
  event.preventDefault();
});
document.addEventListener("theme", () => { paintLens(); drawHeads(); showHead(); showAttention(); });

buildLens();
paintLens();
buildHeads();
drawHeads();
showHead();
choose(T - 1);

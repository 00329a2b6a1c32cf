// Charts that adapt to their width, with a cursor for mouse, touch and arrow keys; the player of the samples.
const shown = (x) => Math.abs(x) >= 10000 ? x.toLocaleString("en", {maximumFractionDigits: 0})
  : x !== 0 && Math.abs(x) < 0.01 ? x.toExponential(2) : String(+x.toPrecision(5));

function ticks(low, high, count) { // round numbers, at most about `count`
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((n) => n * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const n of [1, 3]) if (n * 10 ** power >= low * 0.999 && n * 10 ** power <= high * 1.001) found.push(n * 10 ** power);
  return found;
}

// Labels of axis ticks, with at least three digits and as many as the distance between neighbouring ticks needs.
function axisLabels(values) {
  const rounded = (x, digits) => +x.toPrecision(x !== 0 && Math.abs(x) < 0.001 ? digits - 1 : digits);
  const rising = [...values].sort((a, b) => a - b), gap = Math.min(...rising.slice(1).map((x, i) => x - rising[i]));
  let digits = 3;
  while (digits < 12 && values.some((x) => Math.abs(rounded(x, digits) - x) > 0.01 * gap)) digits++;
  return values.map((x) => rounded(x, digits)).map((x) => Math.abs(x) >= 1e6 ? +(x / 1e6).toPrecision(digits) + "M"
    : Math.abs(x) >= 1000 ? +(x / 1000).toPrecision(digits) + "k" : x !== 0 && Math.abs(x) < 0.001 ? x.toExponential() : String(x));
}

// box: an empty element. chart: {name, x, log_x, low, high, series: [{name, colour, faint, dots, scatter, points: [[x, y, label]]}],
// levels: [{name, y}], marks: [{name, x}]}
function draw(box, chart, given = box.clientWidth) {
  const width = Math.max(280, Math.round(given)), height = Math.round(Math.min(340, 150 + width / 5));
  const left = 46, right = 10, top = 10, bottom = 34;
  const series = chart.series.filter((one) => one.points.length);
  const xs = series.flatMap((one) => one.points.map((p) => p[0]));
  const place = chart.log_x ? Math.log10 : (x) => x;
  let x0 = Math.min(...xs), x1 = Math.max(...xs);
  if (x0 === x1) [x0, x1] = chart.log_x ? [x0 / 2, x1 * 2] : [x0 - 1, x1 + 1];
  const pad = series.some((one) => one.scatter) ? 0.04 : 0;
  const X = (x) => left + (pad + (1 - 2 * pad) * (place(x) - place(x0)) / (place(x1) - place(x0))) * (width - left - right);
  const Y = (y) => top + (chart.high - Math.max(chart.low, Math.min(chart.high, y))) / (chart.high - chart.low) * (height - top - bottom);
  const svg = el("svg", {viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": chart.name});
  const yTicks = ticks(chart.low, chart.high, 5), yLabels = axisLabels(yTicks);
  yTicks.forEach((y, i) => svg.append(
    el("line", {class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y)}),
    el("text", {x: left - 6, y: Y(y) + 4, "text-anchor": "end"}, yLabels[i])));
  const values = [...new Set(xs)];
  const xTicks = pad && values.length <= 6 ? values : chart.log_x ? logTicks(x0, x1) : ticks(x0, x1, Math.min(8, width / 90));
  const xLabels = axisLabels(xTicks);
  xTicks.forEach((x, i) => svg.append(
    el("text", {x: Math.min(X(x), width - 14), y: height - bottom + 16, "text-anchor": "middle"}, xLabels[i])));
  svg.append(el("text", {x: width - right, y: height - 4, "text-anchor": "end"}, chart.x));
  for (const level of chart.levels)
    svg.append(el("line", {class: "level", x1: left, x2: width - right, y1: Y(level.y), y2: Y(level.y)}));
  for (const mark of chart.marks) {
    const end = X(mark.x) > width / 2;
    svg.append(el("line", {class: "mark", x1: X(mark.x), x2: X(mark.x), y1: top, y2: height - bottom}),
      el("text", {class: "mark-name", x: X(mark.x) + (end ? -5 : 5), y: height - bottom - 6, "text-anchor": end ? "end" : "start"}, mark.name));
  }
  for (const one of [...series].reverse()) { // the first curve is drawn last, on top
    const points = one.points.map((p) => [X(p[0]), Y(p[1])]);
    if (!one.scatter) svg.append(el("polyline", {points: points.map((p) => p.map((n) => n.toFixed(1)).join()).join(" "),
      stroke: one.colour, "stroke-width": one.faint ? 1.2 : 2.2, "stroke-opacity": one.faint ? 0.45 : 1}));
    if (one.dots || one.scatter) for (const p of points)
      svg.append(el("circle", {cx: p[0].toFixed(1), cy: p[1].toFixed(1), r: one.scatter ? 4.5 : points.length < 60 ? 2.8 : 1.6, fill: one.colour, "fill-opacity": one.scatter ? 0.75 : 1}));
  }
  let last = -Infinity; // labels are drawn above the curves and do not overlap each other
  for (const level of [...chart.levels].sort((a, b) => b.y - a.y)) {
    const y = Math.max(Y(level.y) - 4, top + 10, last + 13);
    svg.append(el("text", {class: "level-name", x: width - right - 2, y, "text-anchor": "end"}, `${level.name} ${level.y.toFixed(3)}`));
    last = y;
  }
  const cursor = el("line", {class: "cursor", x1: -9, x2: -9, y1: top, y2: height - bottom});
  svg.append(cursor);
  const readout = el("div", {class: "readout", "aria-live": "polite"});
  const all = [...new Set(xs)].sort((a, b) => place(a) - place(b));
  let at = null;
  const named = series.filter((one) => one.name);
  const item = (one, ...words) => el("span", {class: "item"}, el("span", {class: "key", style: `background:${one.colour}`}), ...words);
  const legend = () => readout.replaceChildren(...(named.length < 2 ? [] : named).map((one) => item(one, one.name)));
  function point(index) {
    at = Math.max(0, Math.min(all.length - 1, index));
    const x = all[at], parts = [];
    for (const one of series) {
      const off = (p) => Math.abs(X(p[0]) - X(x)), closest = one.points.reduce((best, p) => off(p) < off(best) ? p : best);
      const near = one.scatter ? one.points.filter((p) => p[0] === x) : off(closest) < (one.dots ? 0.5 : 3) ? [closest] : [];
      for (const p of near.slice(0, 4)) parts.push(item(one, p[2] ?? one.name, " ", el("b", {}, shown(p[1]))));
    }
    cursor.setAttribute("x1", X(x)); cursor.setAttribute("x2", X(x));
    readout.replaceChildren(el("span", {class: "item"}, `${chart.x} `, el("b", {}, shown(x))), ...parts);
  }
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.x) * width / box.width;
    point(all.reduce((best, value, i) => Math.abs(X(value) - x) < Math.abs(X(all[best]) - x) ? i : best, 0));
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); legend(); } });
  svg.addEventListener("keydown", (event) => {
    const move = {ArrowLeft: -1, ArrowRight: 1, Home: -all.length, End: all.length}[event.key];
    if (move === undefined) return;
    point(at === null ? (move < 0 ? all.length - 1 : 0) : at + move);
    event.preventDefault();
  });
  legend();
  box.replaceChildren(el("h3", {}, chart.name), svg, readout);
}

const boxes = Object.entries(data.charts).map(([id, chart]) => [document.getElementById(id), chart]);
for (const [box, chart] of boxes) {
  let width = box.clientWidth;
  new ResizeObserver(() => { if (!printing && Math.abs(box.clientWidth - width) > 2) { width = box.clientWidth; draw(box, chart); } }).observe(box);
  draw(box, chart);
}
// In print, three small charts are side by side.
addEventListener("beforeprint", () => { for (const [box, chart] of boxes) draw(box, chart, box.closest(".columns") ? 300 : 700); });
addEventListener("afterprint", () => { for (const [box, chart] of boxes) draw(box, chart); });

if (data.samples && data.samples.length) {
  const slider = document.getElementById("frame"), play = document.getElementById("play");
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "▶"; play.setAttribute("aria-label", "play"); };
  const show = () => {
    const sample = data.samples[+slider.value];
    document.getElementById("sample").textContent = sample.text;
    const loss = sample.val_loss === null ? "" : `, val_loss ${sample.val_loss.toFixed(3)}`;
    document.getElementById("frame-name").textContent = `step ${sample.step.toLocaleString("en")}${loss}`;
  };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (+slider.value === data.samples.length - 1) slider.value = 0;
    show();
    play.textContent = "❚❚"; play.setAttribute("aria-label", "pause");
    timer = setInterval(() => {
      if (+slider.value >= data.samples.length - 1) return stop();
      slider.value = +slider.value + 1;
      show();
    }, 1200);
  });
  show();
}

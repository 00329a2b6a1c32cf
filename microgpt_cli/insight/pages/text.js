
// What the pages about a text share: data.ids are its tokens, data.names how they look.
const percent = share => share >= 0.0995 ? `${(100 * share).toFixed(0)}%` : `${(100 * share).toFixed(1)}%`;

// The ground of a token that cost so many nats.
const alarm = loss => loss === undefined ? "none" : `color-mix(in oklab, #e5484d ${Math.min(85, Math.max(0, loss - 0.3) * 16)}%, transparent)`;

// A token in running text: spaces are spaces, and a newline is shown and breaks the line.
function flow(box, choose, paint) {
  const spans = data.ids.map((token, i) => {
    const span = el("span", {role: "option", "data-at": i, id: `${box.id}-${i}`}, data.names[token].replaceAll("␣", " "));
    paint(span, i);
    return span;
  });
  box.replaceChildren(...spans.flatMap(span => span.textContent.endsWith("↵") ? [span, "\n"] : [span]));
  box.addEventListener("click", event => {
    const chosen = event.target.closest("[data-at]");
    if (chosen) choose(Number(chosen.dataset.at));
  });
  return spans;
}

// Scroll a box, and not the page, until one of its parts is in sight.
function reveal(box, part, side, size) {
  const start = part[`offset${side}`] - (part.offsetParent === box ? 0 : box[`offset${side}`]);
  const seen = box[`scroll${side}`], room = box[`client${size}`];
  if (start < seen + 40 || start + part[`offset${size}`] > seen + room - 10) box[`scroll${side}`] = start - room / 2;
}

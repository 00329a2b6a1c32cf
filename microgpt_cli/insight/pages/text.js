
// Common code of the pages about a text: data.ids are its tokens, data.names their texts.
const percent = share => share >= 0.0995 ? `${(100 * share).toFixed(0)}%` : `${(100 * share).toFixed(1)}%`;

// The background colour for a loss in nats.
const lossColour = loss => loss === undefined ? "none" : `color-mix(in oklab, #e5484d ${Math.min(85, Math.max(0, loss - 0.3) * 16)}%, transparent)`;

// Tokens as running text: spaces are shown as spaces, and a newline is shown and breaks the line.
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

// Scroll a box, not the page, so that a part of it is visible.
function reveal(box, part, side, size) {
  const start = part[`offset${side}`] - (part.offsetParent === box ? 0 : box[`offset${side}`]);
  const seen = box[`scroll${side}`], room = box[`client${size}`];
  if (start < seen + 40 || start + part[`offset${size}`] > seen + room - 10) box[`scroll${side}`] = start - room / 2;
}

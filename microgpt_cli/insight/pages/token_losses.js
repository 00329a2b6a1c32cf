
// The page of `microgpt eval per_token=true`. at: the selected token; losses[i] and predictions[i] are of token i + 1.
const find = id => document.getElementById(id);
const spans = flow(find("text"), choose, (span, i) => { if (i) span.style.background = lossColour(data.losses[i - 1]); });
let at = 0;

function choose(position) {
  if (!spans.length) return;
  spans[at].classList.remove("at");
  spans[at].removeAttribute("aria-selected");
  at = Math.max(0, Math.min(spans.length - 1, position));
  spans[at].classList.add("at");
  spans[at].setAttribute("aria-selected", "true");
  find("text").setAttribute("aria-activedescendant", `text-${at}`);
  const mono = token => el("b", {class: "mono"}, data.names[token]);
  const head = [`${(at + 1).toLocaleString("en")}: `, mono(data.ids[at])];
  if (!at) find("where").replaceChildren(...head, " the first token, not predicted");
  else {
    const loss = data.losses[at - 1], [tokens, probs] = data.predictions[at - 1];
    const predictions = tokens.flatMap((token, i) => [i ? ", " : "", mono(token), ` ${percent(probs[i])}`]);
    find("where").replaceChildren(...head, ` loss ${loss.toFixed(2)}, probability ${percent(Math.exp(-loss))}; predicted `, ...predictions);
  }
}
function move(position) {
  choose(position);
  if (spans.length) reveal(find("text"), spans[at], "Top", "Height");
}
function jump(way) {
  for (let i = at + way; i > 0 && i < spans.length; i += way) if (data.losses[i - 1] > 3) return move(i);
}

for (const button of document.querySelectorAll(".jump")) {
  const index = Number(button.dataset.number) - 1;
  button.disabled = index >= spans.length;
  button.addEventListener("click", () => { move(index); find("text").scrollIntoView({block: "center"}); });
}
find("back").addEventListener("click", () => move(at - 1));
find("on").addEventListener("click", () => move(at + 1));
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const moves = {ArrowLeft: () => move(at - 1), ArrowRight: () => move(at + 1), n: () => jump(1), p: () => jump(-1)};
  if (!(event.key in moves)) return;
  moves[event.key]();
  event.preventDefault();
});
choose(0);

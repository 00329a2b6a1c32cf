"""What `microgpt eval per_token=true` tells beyond the loss: where it lies, on the screen and on a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microgpt_cli.commands.colours import alarm, padded, wanted
from microgpt_cli.commands.pages import write_page
from microgpt_cli.data.baselines import Baselines
from microgpt_cli.data.dataset import Splits
from microgpt_cli.data.tokenizers import Tokenizer, unpack, visible
from microgpt_cli.errors import UserError
from microgpt_cli.insight.overlap import LEAST, Copied, copied
from microgpt_cli.insight.pages.token_losses import Cost, Found, Map, Place, surprise_page
from microgpt_cli.insight.token_losses import Group, Surprise
from microgpt_cli.runs.samples import read_samples

WORST = 20  # places that are kept
ROWS_ON_PAGE, ROWS_ON_SCREEN = 15, 5
ON_SCREEN = 1200  # tokens of the text
BEFORE, AFTER = 24, 12  # tokens shown around a place
PASSAGES = 10
LOOKED_UP = 1 << 22  # tokens of a text whose passages are looked for
LONG_PASSAGE = 300  # tokens of a passage that are shown


@dataclass(frozen=True)
class Read:
    """What was evaluated."""

    part: Tensor  # (M,) token ids
    tokenizer: Tokenizer
    what: str  # "the held-out split"
    splits: Splits | None  # of the run's own text, where it is the one that was evaluated
    is_held_out: bool
    run_folder: Path
    baselines: Baselines

    def name(self, token: int) -> str:
        return visible(self.tokenizer, token)

    def words(self, ids: Tensor) -> str:
        return "".join(map(self.name, ids.tolist()))


def tell(found: Surprise, read: Read, subtitle: str, summary: list[tuple[str, str]], page: Path | None) -> None:
    """Print a summary, and write the page if one is wanted."""
    read_before = [*_read_before(read)]
    by_token, hardest, by_context = _costs(found, read.name)
    places = [_place(place, loss, expected, read) for place, loss, expected in found.places()]
    context = _context(found)
    shown = min(len(read.part), len(found.losses) + 1)
    rest = "All of it is shown." if shown == len(read.part) else f"Shown are the first {shown:,} of {len(read.part):,} "
    told = Map(
        subtitle=subtitle,
        summary=summary,
        shown=rest if rest.endswith(".") else f"{rest}tokens (shown_tokens=).",
        data=_data(found, read, shown),
        by_token=by_token,
        hardest=hardest,
        by_context=by_context,
        places=places,
        by_position=found.by_position(),
        levels={"counting tokens": read.baselines.unigram, "counting pairs": read.baselines.bigram},
        context=context,
        copied=read_before,
    )
    written = write_page(page, surprise_page(told)) if page is not None else None
    _print_text(found, read)
    print(f"\nloss after so many tokens of context\n{_stretches(found)}\n{context}")
    for title, costs in (("tokens that cost most", by_token), ("after which most is lost", by_context)):
        print(f"\n{title}")
        for cost in costs[:ROWS_ON_SCREEN]:
            print(f"  {padded(cost.name, 4)}{cost.count:>9,} times {cost.loss:7.3f} nats {cost.share:6.1%} of the loss")
    print("\nthe worst places")
    for place in places[:ROWS_ON_SCREEN]:
        words = f"{place.before}[{place.token}]{place.after}"
        print(f"  {place.loss:5.2f} nats at {place.number:>9,}  {words}  expected {place.expected}")
    for one in read_before:
        print(f"\n{one.text}: {one.sentence}")
        for words, count, here, there in one.rows[:ROWS_ON_SCREEN]:
            print(f"  {count} tokens at {here}, in training at {there}: {words[:80]}")
    if written is not None:
        print(f"\n{written}")


def _data(found: Surprise, read: Read, shown: int) -> dict[str, object]:
    ids = read.part[:shown].tolist()
    guesses = [[tokens, [round(prob, 3) for prob in probs]] for tokens, probs in found.guesses]
    used = {*ids, *(token for tokens, _ in found.guesses for token in tokens)}
    names = {str(token): read.name(token) for token in sorted(used)}
    return {"ids": ids, "losses": [round(loss, 3) for loss in found.losses], "guesses": guesses, "names": names}


def _costs(found: Surprise, name: Callable[[int], str]) -> tuple[list[Cost], list[Cost], list[Cost]]:
    """By token: those that cost most in all, those that cost most each time; by context: after which most is lost."""

    def told(groups: Sequence[Group]) -> list[Cost]:
        kept = groups[:ROWS_ON_PAGE]
        return [Cost(name(group.token), group.count, group.loss, group.nats / found.nats) for group in kept]

    by_token = found.by_token()
    often = [group for group in by_token if group.count >= max(5, found.tokens / 2000)]
    hardest = sorted(often, key=lambda group: -group.loss)
    return told(by_token), told(hardest), told(found.by_context())


def _place(place: int, loss: float, expected: int, read: Read) -> Place:
    before, after = read.part[max(0, place - BEFORE) : place], read.part[place + 1 : place + 1 + AFTER]
    words = read.words(before), read.name(int(read.part[place])), read.words(after)
    return Place(place + 1, *words, loss, read.name(expected))


def _context(found: Surprise) -> str:
    """Whether the model makes use of its context to the end, in one sentence."""
    gain, all_stretches = found.gain(), found.by_stretch()
    if gain is None or len(all_stretches) < 2:
        return "Too few whole contexts were read to say whether a longer one helps."
    before, last = all_stretches[-2:]
    what = f"tokens with {last.first} to {last.last} before them"
    than = f"those with {_span(before.first, before.last)}"
    if gain.nats > 2 * gain.error:
        return f"Longer context helps to the end: {what} cost {gain.nats:.3f} ± {gain.error:.3f} nats less than {than}."
    if gain.nats < -2 * gain.error:
        return (
            f"Longer context hurts at the end: {what} cost {-gain.nats:.3f} ± {gain.error:.3f} nats more than {than}."
        )
    return (
        f"Longer context does not help measurably at the end: {what} cost {gain.nats:+.3f} ± {gain.error:.3f} nats "
        f"less than {than}."
    )


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _stretches(found: Surprise) -> str:
    rows = found.by_stretch()
    most = max(row.loss for row in rows)
    return "\n".join(
        f"  {_span(row.first, row.last):>14}  {row.loss:.3f}  {'█' * round(40 * row.loss / most)}" for row in rows
    )


def _print_text(found: Surprise, read: Read) -> None:
    """The beginning of the text on grounds as red as its losses; nothing where no colour can be shown."""
    if not wanted() or not found.losses:
        return
    count = min(ON_SCREEN, len(found.losses))
    print(f"\nthe first {count:,} tokens of {read.what}, the redder the less expected\n")
    for token, loss in zip(read.part[1 : count + 1].tolist(), found.losses, strict=False):
        name = read.name(token).replace("␣", " ")
        print(alarm(name, loss, True), end="\n" if name.endswith("↵") else "")
    print()


def _read_before(read: Read) -> list[Found]:
    """What of the held-out text and of the run's samples stands in its training text."""
    if read.splits is None:
        sentence = "Not looked for: this is not the text that the run was trained on. Leave data.path= out to look."
        return [Found("passages of the training text", sentence, [])]
    told = []
    if read.is_held_out:
        told.append(_found("the held-out text", read.part[:LOOKED_UP], len(read.part), read))
    pieces = []
    for sample in read_samples(read.run_folder):
        try:
            ids = unpack(read.tokenizer.encode(sample.text), read.tokenizer.itemsize)
        except UserError:
            continue  # torn by a crash: a character that no text of the run has
        pieces += [torch.tensor([*ids, -1], dtype=torch.long)]
    if pieces:
        text = torch.cat(pieces)
        told.append(_found("the samples that the run wrote", text[:LOOKED_UP], len(text), read))
    return told


def _found(text: str, ids: Tensor, count: int, read: Read) -> Found:
    assert read.splits is not None
    found: Copied = copied(ids, read.splits.train, PASSAGES)
    part = f" (looked for in its first {len(ids):,} tokens)" if len(ids) < count else ""
    if not found.passages:
        sentence = f"no passage of {LEAST} tokens or more stands in the training text{part}."
    else:
        sentence = (
            f"{found.share:.1%} of it lies in passages of {LEAST} tokens or more that stand in the training text too; "
            f"the longest has {found.passages[0].length:,}{part}."
        )
    rows = []
    for passage in found.passages:
        words = read.words(ids[passage.start : passage.start + min(passage.length, LONG_PASSAGE)])
        rows.append(
            (
                words + (" …" if passage.length > LONG_PASSAGE else ""),
                passage.length,
                f"{passage.start + 1:,}",
                f"{passage.origin + 1:,}",
            )
        )
    return Found(text, sentence[0].upper() + sentence[1:], rows)

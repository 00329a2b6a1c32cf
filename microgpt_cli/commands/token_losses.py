"""The output of `microgpt eval per_token=true`: the loss by token and context, on the terminal and as a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microgpt_cli.commands.colours import has_colours, padded, shade_loss
from microgpt_cli.commands.pages import write_page
from microgpt_cli.data.baselines import Baselines
from microgpt_cli.data.dataset import Splits
from microgpt_cli.data.tokenizers import Tokenizer, unpack, visible
from microgpt_cli.errors import UserError
from microgpt_cli.insight.overlap import MIN_LENGTH, Overlap, find_overlap
from microgpt_cli.insight.pages.token_losses import LossReport, OverlapReport, TokenRow, WorstToken, token_loss_page
from microgpt_cli.insight.token_losses import LossBreakdown, TokenGroup
from microgpt_cli.runs.samples import read_samples

WORST = 20  # tokens with the highest loss
ROWS_ON_PAGE, ROWS_ON_SCREEN = 15, 5
ON_SCREEN = 1200  # tokens of the text
BEFORE, AFTER = 24, 12  # tokens shown around a token with a high loss
PASSAGES = 10
MAX_SEARCHED = 1 << 22  # tokens of a text that are compared with the training text
MAX_SHOWN = 300  # tokens of a passage


@dataclass(frozen=True)
class Evaluated:
    """The evaluated text."""

    part: Tensor  # (M,) token ids
    tokenizer: Tokenizer
    what: str  # "the validation split"
    splits: Splits | None  # of the run's own text, if it was evaluated
    is_validation: bool
    run_folder: Path
    baselines: Baselines

    def name(self, token: int) -> str:
        return visible(self.tokenizer, token)

    def words(self, ids: Tensor) -> str:
        return "".join(map(self.name, ids.tolist()))


def report_token_losses(
    found: LossBreakdown, text: Evaluated, subtitle: str, summary: list[tuple[str, str]], page: Path | None
) -> None:
    """Print a summary, and write the page if requested."""
    overlaps = [*_overlaps(text)]
    by_token, hardest, by_context = _token_rows(found, text.name)
    worst_tokens = [_worst_token(position, loss, best, text) for position, loss, best in found.worst_tokens()]
    context = _context(found)
    shown = min(len(text.part), len(found.losses) + 1)
    rest = "All of it is shown." if shown == len(text.part) else f"Shown are the first {shown:,} of {len(text.part):,} "
    report = LossReport(
        subtitle=subtitle,
        summary=summary,
        shown=rest if rest.endswith(".") else f"{rest}tokens (shown_tokens=).",
        data=_data(found, text, shown),
        by_token=by_token,
        hardest=hardest,
        by_context=by_context,
        worst_tokens=worst_tokens,
        by_position=found.by_position(),
        levels={"unigram": text.baselines.unigram, "bigram": text.baselines.bigram},
        context=context,
        overlaps=overlaps,
    )
    written = write_page(page, token_loss_page(report)) if page is not None else None
    _print_text(found, text)
    print(f"\nloss by tokens of context\n{_context_lengths(found)}\n{context}")
    for title, rows in (
        ("tokens with the highest total loss", by_token),
        ("preceding tokens with the highest total loss", by_context),
    ):
        print(f"\n{title}")
        for row in rows[:ROWS_ON_SCREEN]:
            print(f"  {padded(row.name, 4)}{row.count:>9,} times {row.loss:7.3f} nats {row.share:6.1%} of the loss")
    print("\ntokens with the highest loss")
    for worst in worst_tokens[:ROWS_ON_SCREEN]:
        words = f"{worst.before}[{worst.token}]{worst.after}"
        print(f"  {worst.loss:5.2f} nats at {worst.number:>9,}  {words}  predicted {worst.predicted}")
    for overlap in overlaps:
        print(f"\n{overlap.text}: {overlap.sentence}")
        for words, count, here, there in overlap.rows[:ROWS_ON_SCREEN]:
            print(f"  {count} tokens at {here}, in training at {there}: {words[:80]}")
    if written is not None:
        print(f"\n{written}")


def _data(found: LossBreakdown, text: Evaluated, shown: int) -> dict[str, object]:
    ids = text.part[:shown].tolist()
    predictions = [[tokens, [round(prob, 3) for prob in probs]] for tokens, probs in found.predictions]
    used = {*ids, *(token for tokens, _ in found.predictions for token in tokens)}
    names = {str(token): text.name(token) for token in sorted(used)}
    return {"ids": ids, "losses": [round(loss, 3) for loss in found.losses], "predictions": predictions, "names": names}


def _token_rows(
    found: LossBreakdown, name: Callable[[int], str]
) -> tuple[list[TokenRow], list[TokenRow], list[TokenRow]]:
    """The tokens with the highest total and mean loss, and the preceding tokens with the highest total loss."""

    def rows(groups: Sequence[TokenGroup]) -> list[TokenRow]:
        kept = groups[:ROWS_ON_PAGE]
        return [TokenRow(name(group.token), group.count, group.loss, group.nats / found.nats) for group in kept]

    by_token = found.by_token()
    frequent = [group for group in by_token if group.count >= max(5, found.tokens / 2000)]
    hardest = sorted(frequent, key=lambda group: -group.loss)
    return rows(by_token), rows(hardest), rows(found.by_context())


def _worst_token(position: int, loss: float, predicted: int, text: Evaluated) -> WorstToken:
    before = text.part[max(0, position - BEFORE) : position]
    after = text.part[position + 1 : position + 1 + AFTER]
    words = text.words(before), text.name(int(text.part[position])), text.words(after)
    return WorstToken(position + 1, *words, loss, text.name(predicted))


def _context(found: LossBreakdown) -> str:
    """Whether the last doubling of the context reduces the loss, in one sentence."""
    gain, ranges = found.gain(), found.by_context_length()
    if gain is None or len(ranges) < 2:
        return "Too few complete windows to measure whether longer context helps."
    before, last = ranges[-2:]
    compared = f"with {last.first} to {last.last} tokens of context than with {_span(before.first, before.last)}"
    difference = f"{abs(gain.nats):.3f} ± {gain.error:.3f} nats {'lower' if gain.nats > 0 else 'higher'} {compared}"
    if gain.nats > 2 * gain.error:
        return f"Longer context helps: the loss is {difference}."
    if gain.nats < -2 * gain.error:
        return f"Longer context hurts: the loss is {difference}."
    return f"Longer context does not help significantly: the loss is {difference}."


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _context_lengths(found: LossBreakdown) -> str:
    rows = found.by_context_length()
    most = max(row.loss for row in rows)
    return "\n".join(
        f"  {_span(row.first, row.last):>14}  {row.loss:.3f}  {'█' * round(40 * row.loss / most)}" for row in rows
    )


def _print_text(found: LossBreakdown, text: Evaluated) -> None:
    """The beginning of the text, with backgrounds that show the loss; nothing on a terminal without colours."""
    if not has_colours() or not found.losses:
        return
    count = min(ON_SCREEN, len(found.losses))
    print(f"\nthe first {count:,} tokens of {text.what}; the redder, the higher the loss\n")
    for token, loss in zip(text.part[1 : count + 1].tolist(), found.losses, strict=False):
        name = text.name(token).replace("␣", " ")
        print(shade_loss(name, loss, True), end="\n" if name.endswith("↵") else "")
    print()


def _overlaps(text: Evaluated) -> list[OverlapReport]:
    """The passages of the validation text and of the run's samples that are in the training text."""
    if text.splits is None:
        sentence = "Not searched, because this is not the text that the run was trained on. Omit data.path= to search."
        return [OverlapReport("overlap with the training text", sentence, [])]
    found = []
    if text.is_validation:
        found.append(_overlap("the validation text", text.part[:MAX_SEARCHED], len(text.part), text))
    pieces = []
    for sample in read_samples(text.run_folder, "surrogateescape"):
        try:
            ids = unpack(text.tokenizer.encode(sample.text), text.tokenizer.itemsize)
        except UserError:
            continue  # incomplete after a crash: has a character that is not in the vocabulary
        pieces += [torch.tensor([*ids, -1], dtype=torch.long)]
    if pieces:
        samples = torch.cat(pieces)
        found.append(_overlap("the samples of the run", samples[:MAX_SEARCHED], len(samples), text))
    return found


def _overlap(name: str, ids: Tensor, count: int, text: Evaluated) -> OverlapReport:
    assert text.splits is not None
    found: Overlap = find_overlap(ids, text.splits.train, PASSAGES)
    part = f" (searched in its first {len(ids):,} tokens)" if len(ids) < count else ""
    if not found.passages:
        sentence = f"no passage of {MIN_LENGTH} or more tokens is in the training text{part}."
    else:
        sentence = (
            f"{found.share:.1%} of it is in passages of {MIN_LENGTH} or more tokens that the training text has too; "
            f"the longest has {found.passages[0].length:,} tokens{part}."
        )
    rows = []
    for passage in found.passages:
        words = text.words(ids[passage.start : passage.start + min(passage.length, MAX_SHOWN)])
        rows.append(
            (
                words + (" …" if passage.length > MAX_SHOWN else ""),
                passage.length,
                f"{passage.start + 1:,}",
                f"{passage.origin + 1:,}",
            )
        )
    return OverlapReport(name, sentence[0].upper() + sentence[1:], rows)

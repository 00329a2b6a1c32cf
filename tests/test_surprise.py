"""`microgpt eval per_token=true`: sums that are right, whatever the pieces, and its page in a real browser."""

import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import TEXT, TINY, Run, preset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.browser import Browser

from microgpt_cli.compute import choose
from microgpt_cli.insight.token_losses import Piece, Surprise, stretches, token_losses
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs.samples import Sample, append_sample
from microgpt_cli.training.trainer import evaluate

V, T = 5, 4


def test_the_mean_of_the_tokens_is_the_loss_of_eval() -> None:
    torch.manual_seed(0)
    compute = choose("cpu", "float32")
    for arch in ("article", "modern"):
        model = GPT(preset("micro", arch, n_layer=1, n_embd=16, block_size=8), V).eval()
        with torch.no_grad():
            model.lm_head.weight.normal_()
        ids = torch.randint(V, (203,))
        nats, counts = zip(*evaluate(model, ids, compute, 4), strict=True)
        surprise = Surprise(V, 8, 1000, 5)
        for piece in token_losses(model, ids, compute, 4):
            surprise.add(piece)
        assert surprise.tokens == sum(counts) == 202
        assert surprise.loss == pytest.approx(sum(n.item() for n in nats) / 202, rel=1e-6)
        assert sum(surprise.losses) / 202 == pytest.approx(surprise.loss, rel=1e-6)
        with torch.no_grad():
            logits, _ = model(ids[None, :8])
        best = logits[0, 3].softmax(-1).topk(3)
        assert surprise.guesses[3][0] == best.indices.tolist()
        assert surprise.guesses[3][1] == pytest.approx(best.values.tolist())


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 10), st.integers(0, 1000))
def test_sums_are_those_of_counting_one_by_one(count: int, rows: int, kept: int, seed: int) -> None:
    """Whatever the pieces: tokens, contexts, positions, the worst places, the beginning."""
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (count,), generator=drawn)
    losses = torch.rand(count - 1, generator=drawn)
    logits = torch.randn(count - 1, V, generator=drawn)
    surprise = Surprise(V, T, kept, 3)
    whole = (count - 1) // T * T
    for start in [*range(0, whole, rows * T), whole]:
        end = min(start + rows * T, whole) if start < whole else count - 1
        shape = (-1, T) if start < whole else (1, -1)
        if end > start:
            here = slice(start, end)
            idx, targets = ids[here].view(shape), ids[start + 1 : end + 1].view(shape)
            surprise.add(Piece(idx, targets, losses[here].view(shape), logits[here].view(*idx.shape, V)))
    of, after, at = (defaultdict(list) for _ in range(3))
    for i, loss in enumerate(losses.tolist()):
        of[int(ids[i + 1])].append(loss)
        after[int(ids[i])].append(loss)
        at[i % T].append(loss)
    for groups, counted in ((surprise.by_token(), of), (surprise.by_context(), after)):
        assert {g.token: (g.count, pytest.approx(g.nats)) for g in groups} == {
            token: (len(found), pytest.approx(sum(found))) for token, found in counted.items()
        }
        assert [g.nats for g in groups] == sorted((g.nats for g in groups), reverse=True)
    assert surprise.by_position() == [pytest.approx(sum(at[p]) / len(at[p])) if at[p] else None for p in range(T)]
    worst = sorted(range(count - 1), key=lambda i: -losses[i])[:3]
    assert surprise.places() == [(i + 1, losses[i].item(), int(logits[i].argmax())) for i in worst]
    assert surprise.losses == losses[:kept].tolist()
    assert len(surprise.guesses) == len(surprise.losses)
    assert surprise.loss == pytest.approx(losses.mean().item())


@given(st.integers(1, 5000))
def test_stretches_cover_every_length_once(block_size: int) -> None:
    found = stretches(block_size)
    assert [n for first, last in found for n in range(first, last + 1)] == list(range(1, block_size + 1))


def test_the_gain_of_the_last_stretch_is_measured_within_windows() -> None:
    """A drop of half a nat from the first half to the second, the windows being of very different levels."""
    levels = torch.arange(20.0)[:, None]
    losses = levels + torch.tensor([9.0, 9.0, 2.5, 2.5, 2.0, 2.0, 2.0, 2.0]) + torch.arange(20.0)[:, None] % 2 * 0.01
    losses[:, 4:] += torch.arange(20.0)[:, None] % 2 * 0.2
    surprise = Surprise(V, 8, 0, 1)
    for part in losses.split(7):
        ids = torch.zeros_like(part).long()
        surprise.add(Piece(ids, ids, part, torch.zeros(*part.shape, V)))
    gain = surprise.gain()
    assert gain is not None
    assert gain.nats == pytest.approx(0.4, abs=1e-5)
    assert gain.error == pytest.approx(0.1 / 19**0.5, rel=1e-4)
    few = Surprise(V, 8, 0, 1)
    few.add(Piece(ids[:3], ids[:3], losses[:3], torch.zeros(3, 8, V)))
    assert few.gain() is None


def test_eval_tells_the_same_loss_and_where_it_lies(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    append_sample(run, Sample(31, TEXT[:40]))  # a passage of the training text
    plain, told = microgpt("eval", str(run)), microgpt("eval", str(run), "per_token=true")
    assert told.status == 0, told.err

    def loss(out: str) -> str:
        found = re.search(r"^loss +(\S+) nats", out, re.MULTILINE)
        assert found
        return found[1]

    assert loss(told.out) == loss(plain.out)
    assert "\x1b" not in told.out
    assert "The held-out text" not in plain.out
    assert "the held-out text: 100.0% of it lies in passages" in told.out  # TEXT repeats two lines
    assert re.search(r"the samples that the run wrote: \d+\.\d% of it .*; the longest has 4\d\.", told.out)
    assert told.out.endswith("page      surprise.html (open it in a browser; it needs no network)\n")
    assert not (run / "surprise.html").exists()


def test_eval_of_another_text_looks_for_no_passages(microgpt: Run, trained: Path) -> None:
    Path("other.txt").write_text("The fox.\n" * 4)
    ran = microgpt("eval", str(trained), "data.path=other.txt", "per_token=true", "shown_tokens=5", "out=o.html")
    assert ran.status == 0, ran.err
    assert "passages of the training text: Not looked for" in ran.out
    assert "Too few whole contexts" in ran.out
    assert "Shown are the first 6 of 36 tokens" in Path("o.html").read_text()
    assert microgpt("eval", str(trained), "per_token=true", "out=no/such/x.html").status == 2
    assert microgpt("eval", str(trained), "per_token=true", "out=null").status == 0
    assert not Path("surprise.html").exists()


def test_bytes_and_odd_characters_are_shown(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("</script>é\t\u202e\x00" * 60, encoding="utf-8")
    for kind in ("byte", "char"):
        words = [*TINY, f"tokenizer={kind}", "data.path=t.txt", "max_steps=1", f"out_dir={kind}"]
        assert microgpt("train", *words).status == 0
        ran = microgpt("eval", kind, "per_token=true", f"out={kind}.html")
        assert ran.status == 0, ran.err
        names = json.loads(re.findall(r'id="data">(.*?)</script>', Path(f"{kind}.html").read_text())[0])["names"]
        assert {"⇥", "<", "\\x00"} <= set(names.values())
        assert ("\\xc3" if kind == "byte" else "é") in names.values()
        assert microgpt("inspect", kind, "prompt=</script>é").status == 0


def test_the_page_of_surprise(browser: Browser, microgpt: Run, trained: Path) -> None:
    assert microgpt("eval", str(trained), "per_token=true", "shown_tokens=200").status == 0
    file = Path("surprise.html")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', file.read_text())[0])
    with browser.open(file) as tab:
        assert tab.js("document.querySelectorAll('#text span').length") == 201
        assert tab.js("document.querySelectorAll('svg.chart > line').length") > 4  # beside each other, not nested
        assert tab.text("#where").endswith("the first token, not predicted")
        tab.press("ArrowRight")
        tab.press("ArrowRight")
        tab.press("ArrowLeft")
        assert tab.js("at") == 1
        assert f"loss {data['losses'][0]:.2f}, " in tab.text("#where")
        hard = [i + 1 for i, loss in enumerate(data["losses"]) if loss > 3]
        for wanted in hard[1 if hard[0] == 1 else 0 :][:2]:
            tab.press("n")
            assert tab.js("at") == wanted
        tab.press("p")
        assert tab.js("at") in (hard[0], hard[1])
        shown = tab.js("document.querySelector('.jump:not([disabled])')?.dataset.number ?? null")
        if shown is not None:
            tab.click(".jump:not([disabled])")
            assert tab.js("at") == int(shown) - 1
    with browser.open(file, width=390, height=800, dark=True) as tab:
        assert tab.overflow() == 0
        tab.tap("#text-7")
        assert tab.js("at") == 7
        tab.tap("#back")
        assert tab.js("at") == 6

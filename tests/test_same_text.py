"""The same text is the one with the same checksum, whatever its name, in tables, verdicts, reports and sweeps."""

import json
import re
from pathlib import Path

import pytest
from conftest import TEXT, TINY, Run
from test_table import make_run

from microgpt_cli.runs import reading, table

A, B = "a" * 64, "b" * 64


def note(folder: Path, text: str | None, val_tokens: int | None = 100) -> None:
    """What a run notes of its text and its evaluations."""
    result = json.loads((folder / "result.json").read_text())
    result |= {"text_sha256": text} if text else {}
    result |= {"val_tokens": val_tokens} if val_tokens else {}
    (folder / "result.json").write_text(json.dumps(result))


def runs_of(*kinds: dict[str, object]) -> list[reading.Run]:
    """Three seeds of each kind, the first kind with the lowest losses."""
    for kind, given in enumerate(kinds):
        settings = dict(given)
        text, val_tokens = settings.pop("text", A), settings.pop("val_tokens", 100)
        for seed in range(3):
            folder = Path(f"{kind}-{seed}")
            make_run(folder, loss=2 + kind + seed / 1000, seed=10 * kind + seed, **settings)
            note(folder, text, val_tokens)  # type: ignore[arg-type]
    return reading.read_runs(["."])


@pytest.mark.parametrize(
    ("kinds", "configurations", "same"),
    [
        (({"data__path": "a.txt"}, {"data__path": "a.txt"}), 1, ""),
        (({"data__path": "a.txt"}, {"data__path": "copy.txt"}), 1, ""),
        (({"data__path": "a.txt"}, {"data__path": "a.txt", "text": B}), 2, "text_sha256"),
        (({"data__path": "a.txt"}, {"data__path": "b.txt", "text": B}), 2, "data.path"),
        (({"data__source": "pydocs"}, {"data__source": "pydocs", "text": B}), 2, "text_sha256"),
        (({"data__path": "a.txt", "text": None}, {"data__path": "a.txt", "text": None}), 1, ""),
        (({"data__path": "a.txt", "text": None}, {"data__path": "b.txt", "text": None}), 2, "data.path"),
        (({"data__path": "a.txt", "text": None}, {"data__path": "a.txt"}), 2, "text_sha256"),
        (({"eval_tokens": 500, "val_tokens": 500}, {"eval_tokens": None, "val_tokens": 900}), 2, "eval_tokens"),
        (({"eval_tokens": 5000, "val_tokens": 900}, {"eval_tokens": None, "val_tokens": 900}), 1, ""),
        (({"eval_tokens": 5, "val_tokens": None}, {"eval_tokens": 6, "val_tokens": None}), 2, "eval_tokens"),
        (({"val_tokens": 90}, {"text": B, "val_tokens": 80}), 2, "text_sha256"),
        (
            ({"val_tokens": 90, "eval_tokens": 90}, {"text": B}, {"val_tokens": 80, "eval_tokens": 80}),
            3,
            "text_sha256, eval_tokens",
        ),
    ],
)
def test_runs_are_one_configuration_only_over_one_text(
    kinds: tuple[dict[str, object], ...], configurations: int, same: str
) -> None:
    runs = runs_of(*kinds)
    grouped = table.configurations(runs)
    assert len(grouped) == configurations
    assert sum(len(configuration.runs) for configuration in grouped) == 3 * len(kinds)
    shown = table.render(runs, width=200)
    assert table.verdict(grouped) is None
    found = re.search(r"Losses are comparable only between runs with the same (.*)\.", shown)
    assert (found[1] if found else "") == same
    if same == "text_sha256":
        assert "text_sha256" in next(line for line in shown.splitlines() if line.startswith("run "))
        assert A not in shown


def test_a_file_that_was_changed_is_another_text_everywhere(microgpt: Run, tmp_path: Path) -> None:
    def train(seeds: str, *words: str) -> None:
        one = ["train", *TINY, "data.path=a.txt", "max_steps=2", "sample_interval=0"]
        for seed in seeds.split(","):
            assert microgpt(*one, f"seed={seed}", f"out_dir=all/{seed}", *words).status == 0

    (tmp_path / "a.txt").write_text(TEXT)
    train("0,1")
    (tmp_path / "a.txt").write_text(TEXT.replace("dog", "cat"))
    train("2,3")
    for name in ("about.json", "result.json"):
        noted = {seed: json.loads((tmp_path / "all" / seed / name).read_text())["text_sha256"] for seed in "0123"}
        assert noted["0"] == noted["1"] != noted["2"] == noted["3"]
    sentence = "Losses are comparable only between runs with the same text_sha256."
    out = microgpt("runs", "all").out
    assert sentence in " ".join(out.split())
    assert "significant" not in out
    assert sentence in microgpt("compare", "all/0", "all/2", "sample=false").out
    assert sentence not in microgpt("compare", "all/0", "all/1", "sample=false").out
    assert microgpt("report", "all").status == 0
    assert sentence in (tmp_path / "all" / "report.html").read_text()
    grouped = json.loads(microgpt("runs", "all", "format=json").out)
    assert [len(configuration["runs"]) for configuration in grouped["configurations"]] == [2, 2]
    assert len({configuration["settings"]["text_sha256"] for configuration in grouped["configurations"]}) == 2
    (tmp_path / "all" / "0" / "result.json").unlink()  # as where it was killed
    assert reading.read_run(tmp_path / "all" / "0").text_sha256 == noted["0"]


def test_a_sweep_over_the_number_of_evaluated_tokens_says_so(microgpt: Run, text_file: Path) -> None:
    words = [*TINY, f"data.path={text_file}", "max_steps=1", "eval_tokens=20,null"]
    ran = microgpt("train", "-m", *words)
    assert "comparable only between runs with the same eval_tokens" in " ".join(ran.out.split())

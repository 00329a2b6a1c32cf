"""The benchmarks: they import, time in turns, count, and keep their tables. What they measure, no test asserts."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the benchmarks are not here: they are no part of a release")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_and_does_nothing(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script(name)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_ways_take_turns_and_each_round_does_as_many_units() -> None:
    calls: list[tuple[str, int]] = []
    timing = script("timing")
    ways = {name: (lambda count, name=name: calls.append((name, count))) for name in "ab"}
    found = timing.in_turns(ways, rounds=3, round_seconds=1e-9, trial_units=2)
    rounds = calls[4:]  # after two trials of each
    assert [name for name, _ in rounds] == ["a", "b"] * 3
    assert all(count == found[name].units for name, count in rounds)
    assert [len(timed.rounds) for timed in found.values()] == [3, 3]


@given(pairs=st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=9))
def test_a_ratio_lies_between_its_extremes_and_turns_round(pairs: list[tuple[float, float]]) -> None:
    timing = script("timing")
    fast, slow = zip(*pairs, strict=True)
    ratio = timing.times_as_fast(fast, slow)
    assert ratio.least <= ratio.median <= ratio.most
    assert ratio.most == pytest.approx(1 / timing.times_as_fast(slow, fast).least)
    assert timing.times_as_fast(fast, fast).median == 1


def test_steps_go_on_counting() -> None:
    seen: list[int] = []
    way = script("timing").repeated(seen.append)
    way(2)
    way(3)
    assert seen == [1, 2, 3, 4, 5]


def test_ours_and_the_plain_way_both_train() -> None:
    config = script("bench").cli.load_config("train", [*TINY, "optim=adamw"])
    row = script("train_speed").compare(config, "tiny", rounds=2, round_seconds=0.01)
    assert row["batch"] == "4 × 8"
    assert row["ours_tokens_per_sec"] > 0
    assert row["plain_tokens_per_sec"] > 0
    assert row["ratio_min_max"][0] <= row["ratio"] <= row["ratio_min_max"][1]


def test_the_share_of_evaluation_follows_the_interval(text_file: Path) -> None:
    share = script("evaluating").share
    words = [*TINY, f"data.path={text_file}", "max_steps=1000"]
    assert 0 < share([*words, "eval_interval=0"]) < share([*words, "eval_interval=1"]) < 1
    with pytest.raises(RuntimeError, match="no such file"):
        share(["data.path=missing.txt"])


def test_a_table_has_columns_of_one_width_and_says_what_met_its_goal() -> None:
    bench = script("bench")
    ratio = script("timing").Ratio(2.5, 2.0, 3.0)
    rows = [
        vars(bench.against(2.0, ratio, "training", "a", "much")),
        vars(bench.against(3.0, ratio, "training", "b", "too little")),
        vars(bench.Row("evaluating", "c", "5%")),
    ]
    lines = bench.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["yes", "no", ""]


def test_parts_that_were_not_measured_keep_their_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, machine = script("bench"), script("machine")
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    old = [vars(bench.Row("training", "old", "1")), vars(bench.Row("loss", "old", "2"))]
    bench.store("it", [], old, ["training", "loss"])
    path = bench.store("it", ["only=training"], [vars(bench.Row("training", "new", "3"))], ["training"])
    page = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["part"], row["what"]) for row in page["rows"]] == [("training", "new"), ("loss", "old")]
    assert page["command"] == "python benchmarks/bench.py only=training"
    assert set(page["versions"]) == {"microgpt", "torch", "python"}


def test_a_part_that_fails_is_told_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, machine = script("bench"), script("machine")
    monkeypatch.setattr(machine, "RESULTS", tmp_path)

    def works(settings: object) -> Iterator[object]:
        yield bench.Row("training", "one", "1")

    def fails(settings: object) -> Iterator[object]:
        yield bench.Row("loss", "two", "2")
        raise OSError("no disk")

    monkeypatch.setattr(bench, "PARTS", {"training": works, "loss": fails})
    bench.main(["only=loss,training", "name=it"])
    rows = json.loads((tmp_path / "bench_it.json").read_text(encoding="utf-8"))["rows"]
    assert [row["measured"] for row in rows] == ["1", "2", "failed: OSError: no disk"]
    assert "no disk" in capsys.readouterr().out


def test_the_table_goes_between_its_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, machine = script("bench"), script("machine")
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.store("bench_it", [], [vars(bench.Row("training", "what was measured", "1"))], ["training"])
    (tmp_path / "README.md").write_text(f"before\n{bench.BEGIN}old\n{bench.END}after\n", encoding="utf-8")
    for _ in range(2):  # the second changes nothing
        bench.main(["readme=it"])
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text.startswith(f"before\n{bench.BEGIN}")
        assert text.endswith(f"\n{bench.END}after\n")
        assert text.count("what was measured") == 1
        assert "old\n" not in text


def test_an_unknown_word_costs_a_line() -> None:
    for words in (["rouns=3"], ["only=trainin"], ["fast"]):
        with pytest.raises(SystemExit) as stopped:
            script("bench").main(words)
        assert isinstance(stopped.value.code, str)
        assert words[0] in stopped.value.code


def test_the_readme_has_the_marks_of_the_table() -> None:
    bench = script("bench")
    text = bench.README.read_text(encoding="utf-8")
    assert text.count(bench.BEGIN) == text.count(bench.END) == 1

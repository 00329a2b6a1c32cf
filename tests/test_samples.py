"""samples.txt: reading returns what was written, for any text."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microgpt_cli.errors import UserError
from microgpt_cli.runs.samples import Sample, append_sample, drop_samples_after, read_samples

LINES = st.sampled_from(["=== step 7 ===", ">=== step 7 ===", "=== step 999 ===", "", "é", "\r", "\n\n", " x", ">"])
TEXTS = st.lists(LINES).map("\n".join) | st.text(st.characters(exclude_categories=["Cs"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, max_size=5))
def test_samples_round_trip_for_any_text(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "samples.txt").unlink(missing_ok=True)
    written = [Sample(10 * step, text) for step, text in enumerate(texts)]
    for sample in written:
        append_sample(tmp_path, sample)
    assert read_samples(tmp_path) == written
    drop_samples_after(tmp_path, 20)
    assert read_samples(tmp_path) == written[:3]


def test_sample_file_format(tmp_path: Path) -> None:
    append_sample(tmp_path, Sample(5, "To be"))
    assert (tmp_path / "samples.txt").read_bytes() == b"=== step 5 ===\nTo be\n\n"


def test_file_without_quoting_is_split_at_increasing_steps(tmp_path: Path) -> None:
    text = "=== step 10 ===\na\n=== step 11 ===\n\n=== step 4 ===\nb\n\n=== step 20 ===\nc\n\n"
    (tmp_path / "samples.txt").write_text(text)
    assert read_samples(tmp_path) == [Sample(10, "a\n=== step 11 ===\n\n=== step 4 ===\nb"), Sample(20, "c")]


@pytest.mark.parametrize("torn", range(1, 37))
def test_truncated_file_loses_only_the_last_sample(torn: int, tmp_path: Path) -> None:
    for step in (10, 20):
        append_sample(tmp_path, Sample(step, "ré"))
    whole = (tmp_path / "samples.txt").read_bytes()
    (tmp_path / "samples.txt").write_bytes(whole[:-torn])
    drop_samples_after(tmp_path, 20)
    append_sample(tmp_path, Sample(30, "new"))
    found = {sample.step: sample.text for sample in read_samples(tmp_path)}
    assert found[30] == "new"
    assert set(found) <= {10, 20, 30}
    assert found.get(10, "ré") == "ré" or torn > 21


def test_run_without_samples_returns_an_empty_list(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == []
    drop_samples_after(tmp_path, 0)
    (tmp_path / "samples.txt").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        read_samples(tmp_path)

"""Line plots in a terminal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt_cli.runs.terminal_plot import BLANK, has_braille, plot, side_by_side

POINTS = st.lists(st.tuples(st.floats(0, 1e8), st.floats(-1e60, 1e60)), max_size=8).map(sorted)


@settings(max_examples=50, deadline=None)
@given(st.lists(POINTS, max_size=5), st.integers(1, 200), st.integers(1, 40), st.booleans())
def test_plot_fits_its_width_and_height_for_any_curves(
    curves: list[list[tuple[float, float]]], width: int, height: int, b: bool
) -> None:
    lines = plot(curves, width, height, braille=b).splitlines()
    assert len(lines) <= max(height, 4)
    if width >= 60:
        assert max(map(len, lines)) <= width


def test_decreasing_line_goes_from_corner_to_corner() -> None:
    lines = plot([[(0, 4.0), (100, 1.0)]], 40, 12, braille=False).splitlines()
    assert lines[0].startswith(" 4 a")
    assert lines[-2].startswith(" 1 ")
    assert lines[-2].endswith("A")
    assert lines[-1].split() == ["0", "100"]
    columns = [line.index("a") for line in lines[:-2]]
    assert columns == sorted(columns)


def test_braille_and_ascii_draw_the_same_shape() -> None:
    curve = [(x, (x - 5) ** 2) for x in range(11)]
    fine = plot([curve], 42, 12).splitlines()[:-1]
    coarse = plot([curve], 42, 12, braille=False).splitlines()[:-1]
    for one, other in zip(fine, coarse, strict=True):
        drawn = [{i for i, char in enumerate(line[4:]) if char not in f" {BLANK}"} for line in (one, other)]
        assert all(any(abs(i - j) <= 2 for j in drawn[0]) for i in drawn[1])


def test_braille_dots_are_at_their_points() -> None:
    """A line that rises from the lower left corner starts with the lower left dot of its cell, not the upper one."""
    cell = ord(plot([[(0, 1.0), (100, 2.0)]], 43, 12).splitlines()[-2][3]) - ord(BLANK)
    assert cell & 0x40
    assert not cell & 0x01


def test_curves_with_the_same_end_have_separate_letters() -> None:
    text = plot([[(0, 2.0), (9, 1.0)], [(0, 3.0), (9, 1.0)], []], 40, 10)
    assert (text.count("A"), text.count("B"), text.count("C")) == (1, 1, 0)


def test_logarithmic_x_axis_spaces_decades_evenly_and_labels_its_ends() -> None:
    curves = [[(1e-5, 0.0)], [(1e-3, 0.0)], [(1e-1, 0.0)]]
    lines = plot(curves, 47, 5, braille=False, log_x=True).splitlines()
    [row] = [line for line in lines if "B" in line]
    first, second, third = (row.index(letter) for letter in "ABC")
    assert abs((third - second) - (second - first)) <= 2
    assert lines[-1].split() == ["1e-05", "0.1"]


def test_escape_codes_only_with_colour() -> None:
    assert "\x1b" not in plot([[(0, 1.0), (1, 2.0)]], 40, 10)
    assert "\x1b[36m" in plot([[(0, 1.0), (1, 2.0)]], 40, 10, colour=True)


def test_empty_and_single_point_plots() -> None:
    assert plot([[], []], 40, 10) == "(no points)"
    assert "1" in plot([[(5, 1.0)]], 40, 10)  # one evaluation


def test_has_braille_depends_on_the_encoding() -> None:
    assert has_braille("utf-8")
    for encoding in ("ascii", "latin-1", None, "no such encoding"):
        assert not has_braille(encoding)


@pytest.mark.parametrize(("width", "beside"), [(80, True), (30, False)])
def test_texts_are_side_by_side_if_the_width_allows(width: int, beside: bool) -> None:
    text = side_by_side(["one\ntwo" + "x" * 50, "three\x1b[2J"], "AB", width)
    assert "\x1b" not in text or not beside
    assert max(map(len, text.splitlines())) <= max(width, 60)
    assert any("one" in line and "three" in line for line in text.splitlines()) == beside

"""`microgpt replay`: a film on a terminal, plain text everywhere else, and its end whenever one likes."""

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

from microgpt_cli.runs.replay_frames import CHARACTERS_PER_SEC, LONGEST_SEC, PAUSES_SEC, film
from microgpt_cli.runs.samples import Sample, append_sample, read_samples


def test_a_film_shows_every_sample_whole_and_in_order() -> None:
    samples = [Sample(10, "xq\n\nz"), Sample(1000, "To be, or")]
    frames = list(film(samples, {10: 3.0, 900: 1.5}))
    assert "".join(frame.text for frame in frames) == (
        "step    10  val_loss 3.0000\nxq\n\nz\n\nstep 1,000  val_loss 1.5000 at step 900\nTo be, or\n"
    )
    assert [frame.text[:11] for frame in frames if frame.is_header] == ["step    10 ", "step 1,000 "]
    assert all(frame.seconds > 0 for frame in frames)


def test_a_step_before_the_first_evaluation_has_no_loss() -> None:
    assert next(film([Sample(5, "a")], {10: 3.0})).text == "step 5\n"
    assert next(film([Sample(5, "a")], {})).text == "step 5\n"


def test_a_film_of_many_samples_is_no_longer_than_its_reader_has_time() -> None:
    short = list(film([Sample(1, "a" * 90)], {}))
    assert sum(frame.seconds for frame in short if len(frame.text) == 1 and frame.text == "a") == pytest.approx(
        90 / CHARACTERS_PER_SEC
    )
    long = film([Sample(step, "a" * 500) for step in range(1000)], {})
    assert sum(frame.seconds for frame in long) < LONGEST_SEC + 2 * PAUSES_SEC


def test_a_terminal_is_given_nothing_to_obey() -> None:
    text = "".join(frame.text for frame in film([Sample(1, "a\x1b[2J\x07\x9b\u202eb\té\n")], {}))
    assert text == "step 1\na\\x1b[2J\\x07\\x9b\\u202eb\té\n\n"


def test_piped_it_prints_all_at_once_without_escape_codes(microgpt: Run, trained: Path) -> None:
    ran = microgpt("replay", str(trained))
    assert (ran.status, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert ran.out.count("val_loss") == 3
    for sample in read_samples(trained):
        assert f"step {sample.step}  val_loss" in ran.out
        assert f"\n{sample.text}\n" in ran.out
    assert microgpt("replay", str(trained), "speed=100").out == ran.out


def test_a_run_without_samples_gets_a_clear_line(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "samples.txt").unlink()
    ran = microgpt("replay", str(run))
    assert (ran.status, ran.out) == (2, "")
    assert "no samples in this folder; a run writes them every sample_interval steps" in ran.err


def play(run: Path, pressed: bytes, *words: str) -> tuple[int, str, bool]:
    """Play on a terminal, and press keys when the first sample begins.

    Returns: exit status, what was on the screen, and whether the terminal is as it was before.
    """
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    own_terminal = (
        "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which may have been ignored where pytest began
    )
    code = f"{own_terminal}; from microgpt_cli.cli import main as cli; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "replay", str(run), *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    screen = b""
    while process.poll() is None or select.select([ours], [], [], 0.1)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            screen += os.read(ours, 65536)
        if pressed and b"step 1" in screen:
            os.write(ours, pressed)
            pressed = b""
    same = termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    return process.returncode, screen.decode().replace("\r\n", "\n"), same


@pytest.fixture
def run(tmp_path: Path) -> Path:
    append_sample(tmp_path, Sample(1, "gibberish " * 50))
    append_sample(tmp_path, Sample(2, "text"))
    return tmp_path


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of Unix")
@pytest.mark.parametrize(
    ("pressed", "speed", "status", "first", "second"),
    [
        (b"", "1000", 0, True, True),
        (b"q", "0.01", 0, False, False),
        (b"\x03", "0.01", 128 + signal.SIGINT, False, False),  # Ctrl-C
        (b"  nq", "0.01", 0, True, False),
        (b"+" * 30, "0.01", 0, True, True),
    ],
    ids=["to the end", "quit", "Ctrl-C", "halt, go on, next, quit", "faster"],
)
def test_on_a_terminal(pressed: bytes, speed: str, status: int, first: bool, second: bool, run: Path) -> None:
    returned, screen, same = play(run, pressed, f"speed={speed}")
    assert same
    assert returned == status, screen
    assert ("gibberish " * 50 in screen) == first
    assert ("\x1b[1mstep 2\n\x1b[0mtext\n" in screen) == second
    assert "Traceback" not in screen
    assert screen.endswith("interrupted\n") == (pressed == b"\x03")

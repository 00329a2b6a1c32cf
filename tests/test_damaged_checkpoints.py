"""A checkpoint of which one bit is another or whose end is lost is noticed, whichever file it is."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Tried
from support.hostile import MANIFEST

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.errors import UserError


def damaged(step: Path, flips: int, truncations: int) -> Iterator[tuple[Path, bytes]]:
    """(file, its bytes with one bit another or with the end cut off), every file of the checkpoint in turn."""
    draw = random.Random(0)
    names = [*checkpoint.FILES, MANIFEST]
    for number in range(flips + truncations):
        path = step / names[number % len(names)]
        data = path.read_bytes()
        place = draw.randrange(len(data))
        if number < flips:
            yield path, data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        else:  # of each file first the last byte alone
            yield path, data[:-1] if number < flips + len(names) else data[:place]


@pytest.mark.parametrize(
    ("flips", "truncations"), [(100, 10), pytest.param(1000, 100, marks=pytest.mark.stress)], ids=["some", "all"]
)
def test_every_flipped_bit_and_every_lost_end_is_noticed(
    step: Path, flips: int, truncations: int, tried: Tried
) -> None:
    noticed = 0
    for path, data in damaged(step, flips, truncations):
        tried("a flipped bit is noticed" if noticed < flips else "a lost end is noticed")
        whole = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(UserError):
            checkpoint.load(step)
        path.write_bytes(whole)
        noticed += 1
    assert noticed == flips + truncations
    checkpoint.load(step)


@pytest.mark.stress
def test_verifying_a_checkpoint_does_not_import_the_compiler(step: Path) -> None:
    """Any arithmetic on the meta device does: 480 modules, and seconds at each start."""
    code = f"""import sys; from pathlib import Path; from microgpt_cli.checkpoints import checkpoint
before = len(sys.modules); checkpoint.load(Path({str(step)!r})); print(len(sys.modules) - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20

"""The output of `microgpt shapes`."""

import json
from pathlib import Path

import pytest
from conftest import Run

from microgpt_cli.commands import shapes


def test_operations_have_named_and_numeric_shapes(microgpt: Run) -> None:
    ran = microgpt("shapes")
    assert ran.status == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    for line in (
        "token_embedding_table: embedding (B, T) = (4, 32) (B, T, C) = (4, 32, 64) 4,160",
        "slice (position_embedding_table.weight) (block_size, C) = (32, 64) (T, C) = (32, 64) 2,048",
        "0 … 3: Block × 4 (B, T, C) = (4, 32, 64) (B, T, C) = (4, 32, 64) 49,792 13,631,488",
        "view (B, T, 3C) = (4, 32, 192) (B, T, 3, H, D) = (4, 32, 3, 4, 16)",
        "lm_head: linear (B, T, C) = (4, 32, 64) (B, T, V) = (4, 32, 65) 4,225 1,064,960",
        "209,729 parameters; 55,590,912 FLOPs in matrix products, 434,304 per token",
    ):
        assert line in lines
    assert "gradient" not in ran.out


def test_json_contains_every_block_and_sums_match(microgpt: Run) -> None:
    page = json.loads(microgpt("shapes", "format=json", "arch=modern", "backward=true", "batch=2", "time=8").out)
    assert (page["batch"], page["time"], page["device"]) == (2, 8, "cpu")

    def operations(step: dict) -> list[dict]:  # type: ignore[type-arg]
        return [op for inner in step["steps"] for op in operations(inner)] if "steps" in step else [step]

    ops = operations(page["path"])
    for figure in ("parameters", "flops"):
        assert sum(op[figure] for op in ops) == page["path"][figure] == page[figure]
    assert sum(op.get("backward_flops", 0) for op in ops) == page["backward_flops"]
    assert len([op for op in ops if op["operation"] == "scaled_dot_product_attention"]) == 4
    assert ops[0]["in"] == [{"names": ["B", "T"], "shape": [2, 8]}]
    assert ops[0]["weight_gradients"] == {"token_embedding_table.weight": [65, 64]}


def test_backward_lists_gradients_in_reverse_order(microgpt: Run) -> None:
    there, back = microgpt("shapes", "backward=true", "depth=0").out.split("Backward pass")
    assert there.index("lm_head") > there.index("ln_f") > there.index("blocks")
    assert back.index("lm_head") < back.index("ln_f") < back.index("blocks")
    assert "weight (V, C) = (65, 64)" in back
    assert f"{1_302_912:,} per token" in back


@pytest.mark.parametrize(("depth", "blocks", "parts"), [("0", 0, 0), ("1", 4, 0), ("2", 4, 4), ("null", 1, 1)])
def test_depth_lists_every_block_separately(depth: str, blocks: int, parts: int, microgpt: Run) -> None:
    out = microgpt("shapes", f"depth={depth}").out
    assert (out.count(": Block"), out.count(": MLP")) == (blocks, parts)


def test_run_is_traced_with_its_own_sizes(microgpt: Run, trained: Path) -> None:
    out = microgpt("shapes", str(trained), "batch=3").out
    assert "(B, T, C) = (3, 8, 16)" in out
    assert "on the CPU" in out
    assert "Block × " not in out  # there is one
    refused = microgpt("shapes", str(trained), "model=mini")
    assert (refused.status, "the checkpoint defines the model" in refused.err) == (2, True)


def test_large_model_is_traced_on_the_meta_device(microgpt: Run) -> None:
    words = ["shapes", "model=gpt2-xl", "arch=gpt2", "vocab_size=50257", "model.n_layer=3"]
    ran = microgpt(*words)
    assert "on the meta device" in ran.out
    assert "0 … 2: Block × 3" in ran.out
    assert "lm_head: linear (token_embedding_table.weight)" in ran.out
    assert "174,275,200 parameters" in ran.out


def test_narrow_terminal_has_shapes_on_separate_lines(microgpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "UNBOUNDED", 80)
    lines = microgpt("shapes", "backward=true").out.splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index(next(line for line in lines if line.lstrip().startswith("qkv: linear")))
    assert lines[at + 1 : at + 3] == [
        " " * 12 + "in  (B, T, C) = (4, 32, 64)",
        " " * 12 + "out (B, T, 3C) = (4, 32, 192)",
    ]

"""What is chosen to compute with, on machines that aren't this one."""

import pytest
import torch
from conftest import preset

from microgpt_cli.compute import choose


@pytest.mark.parametrize(
    ("device", "dtype", "trained", "expected"),
    [
        ("cuda", "float32", True, ["high"]),
        ("cuda", "float32", False, ["highest"]),
        ("cuda", "bfloat16", True, ["highest"]),
        ("cpu", "float32", True, []),
    ],
)
def test_float32_is_trained_in_tf32_on_a_cuda_gpu_alone(
    device: str, dtype: str, trained: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    compute = choose(device, dtype, trained=preset("micro", "article") if trained else None)
    assert asked == expected
    assert ("TF32" in compute.reasons["dtype"]) == (expected == ["high"])

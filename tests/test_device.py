"""What is chosen to compute with, on machines that aren't this one."""

import pytest
import torch

from microgpt_cli.training.device import choose


@pytest.mark.parametrize(
    ("device", "dtype", "trained", "expected"),
    [
        ("cuda", "float32", 64, ["high"]),
        ("cuda", "float32", 0, ["highest"]),
        ("cuda", "bfloat16", 64, ["highest"]),
        ("cpu", "float32", 64, []),
    ],
)
def test_float32_is_trained_in_tf32_on_a_cuda_gpu_alone(
    device: str, dtype: str, trained: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    compute = choose(device, dtype, train_n_embd=trained)
    assert asked == expected
    assert ("TF32" in compute.reasons["dtype"]) == (expected == ["high"])

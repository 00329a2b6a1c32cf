"""The C decoder generates the tokens of the model's forward pass, for every architecture, or says why it can't."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHES, Run
from support.decoding import V, lively, plainly

from microgpt_cli.engines.cpu import decode
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.cpu.decode import NativeDecoder, NativeWeights
from microgpt_cli.errors import UserError
from microgpt_cli.generation import generate as generating
from microgpt_cli.generation.dtype_policy import choose_native
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream


@pytest.fixture(autouse=True)
def _compiled() -> None:
    try:
        decode.load(torch.float32)
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("micro", {}),
        ("mini", {}),
        ("micro", {"n_embd": 36, "n_head": 3, "block_size": 21}),  # no multiples of 16
        ("micro", {"n_embd": 6, "n_head": 1, "n_layer": 1, "block_size": 1}),
        ("micro", {"qk_norm": True, "position": "learned", "bias": False, "activation": "gelu"}),
        ("micro", {"qkv_bias": True, "position": "rotary", "norm": "rmsnorm", "tied_head": True}),
    ],
)
def test_it_generates_the_tokens_of_the_forward_pass(
    size: str, arch: str, changes: dict[str, object], temperature: float, threads: int
) -> None:
    model, sampler = lively(size, arch, **changes), Sampler(temperature)
    count = model.config.block_size + 20  # past the end of the context
    expected = plainly(model, [1, 2, 3], count, sampler, 5, 1)
    assert list(generate(model, [1, 2, 3], count, sampler, UniformStream(5, 1), native=True)) == expected
    assert len({tuple(column) for column in expected}) > 1


# The largest difference of any logit from the float32 forward pass, over the largest logit, but for what all share.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("at_first", [1, 20, 64])
def test_logits_are_those_of_the_forward_pass(
    at_first: int, arch: str, dtype: torch.dtype, bound: float, threads: int
) -> None:
    try:
        decode.load(dtype)
    except Unavailable as why:
        pytest.skip(str(why))
    model = lively("mini", arch)
    idx = torch.randint(V, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, _ = model(idx)
    decoder = NativeDecoder(NativeWeights(model, dtype), 64, Sampler())
    off = [decoder.forward(idx[0, :at_first], 0) - exact[:, at_first - 1]]
    off += [decoder.forward(idx[0, p : p + 1], p) - exact[:, p] for p in range(at_first, 64)]
    found = torch.stack(off)
    assert (found - found.mean(-1, keepdim=True)).abs().max() / exact.abs().max() < bound
    assert dtype == torch.float32 or found.abs().max() > 0  # the weights are rounded


def test_the_last_unfinished_sample_is_decoded_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps, made = lively("micro", "gpt2"), [], []
    write = NativeDecoder.write

    def counted(self: NativeDecoder, *given: Any) -> Iterator[torch.Tensor]:
        for tokens in write(self, *given):
            steps.append(1)
            yield tokens

    monkeypatch.setattr(NativeDecoder, "write", counted)
    until = [3, 50, 4]
    for tokens in generate(
        model, [1], 60, Sampler(), UniformStream(3, 3), 3, native=True, stopped=lambda row: len(made) >= until[row]
    ):
        made.append(tokens)
    alone = [tokens[1] for tokens in generate(model, [1], 60, Sampler(), UniformStream(3, 3), 3)][:50]
    assert [tokens[1] for tokens in made] == alone
    assert 30 < len(steps) < 50  # with two left, it is torch's


@pytest.mark.parametrize("at_once", [1, 3, 16])
@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(0), Sampler(0.3), Sampler(1e-300), Sampler(top_k=3), Sampler(1, None, 0.9)]
)
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_tokens_per_call_and_where_they_are_sampled_change_no_token(
    arch: str, sampler: Sampler, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_TOKENS_PER_CALL", at_once)
    model = lively("micro", arch)
    for prompt, count in (([1, 2, 3], 100), ([4], 1), ([4], 17), ([i % V for i in range(40)], 20)):
        expected = list(generate(model, prompt, count, sampler, UniformStream(7, 1)))
        assert list(generate(model, prompt, count, sampler, UniformStream(7, 1), native=True)) == expected


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("prompt", [[1, V], [1, -2], [1, 10**12]])
def test_a_token_outside_the_vocabulary_is_an_index_error(prompt: list[int], native: bool) -> None:
    with pytest.raises(IndexError):
        next(generate(lively("micro", "gpt2"), prompt, 3, Sampler(), UniformStream(0, 1), native=native))


def test_a_model_in_another_precision_is_read_as_float32() -> None:
    model = lively("micro", "modern").bfloat16()
    tokens = list(generate(model, [1, 2, 3], 50, Sampler(0), UniformStream(0, 1), native=True))
    assert tokens == list(generate(model.float(), [1, 2, 3], 50, Sampler(0), UniformStream(0, 1)))


def test_nan_logits_are_sampled_as_in_torch() -> None:
    model = lively("micro", "article")
    with torch.no_grad():
        model.lm_head.bias[5] = float("nan")
    found = [
        list(generate(model, [1, 2, 3], 20, Sampler(0), UniformStream(0, 1), native=native)) for native in (False, True)
    ]
    assert found[0] == found[1] == [[5]] * 20


def test_it_is_not_used_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "NativeWeights", lambda *_: pytest.fail("made"))
    assert (
        len(list(generate(lively("micro", "gpt2"), [1], 3, Sampler(), UniformStream(0, 1), cache=False, native=True)))
        == 3
    )


def test_unsupported_settings_are_refused_if_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("micro", "gpt2")
    assert choose_native("auto", model)
    assert choose_native("native", model, torch.bfloat16)
    assert not choose_native("torch", model)
    for given, why in (
        ({"num_samples": 2}, "decodes one sample at a time; try num_samples=1"),
        ({"cache": False}, "needs the key/value cache; try cache=true"),
    ):
        assert not choose_native("auto", model, **given)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"engine=native: {why}"):
            choose_native("native", model, **given)  # type: ignore[arg-type]

    def missing(dtype: torch.dtype) -> None:
        raise Unavailable("no C compiler found (cc)")

    monkeypatch.setattr(decode, "load", missing)
    assert not choose_native("auto", model)
    with pytest.raises(UserError, match=r"engine=native: no C compiler found \(cc\); try engine=torch"):
        choose_native("native", model)
    elsewhere = lively("micro", "gpt2").to("meta")
    with pytest.raises(UserError, match="engine=native: needs a CPU, not meta; try device=cpu"):
        choose_native("native", elsewhere)


def test_sample_prints_the_same_with_and_without_it(microgpt: Run, trained: Path) -> None:
    words = ["sample", str(trained), "max_new_tokens=120", "temperature=0", "prompt=The "]
    native, plain = (microgpt(*words, f"engine={way}") for way in ("native", "torch"))
    assert native.status == plain.status == 0
    assert native.out == plain.out
    refused = microgpt(*words, "engine=native", "cache=false")
    assert refused.status == 2
    assert "engine=native: needs the key/value cache; try cache=true" in refused.err

"""Tokens from the cache are those of the plain forward pass, whatever the model, the batch and the draws."""

from pathlib import Path

import pytest
import torch
from conftest import ARCHES, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoding import V, lively, plainly
from torch import Tensor

from microgpt_cli.data.tokenizers import CharTokenizer
from microgpt_cli.engines.cuda.decode_graph import bucket_for, decode_static
from microgpt_cli.engines.decoding import Cache, decode_one_token, prefill, prepare
from microgpt_cli.engines.linear import can_pack, has_float16_linear, pack_head, pack_linear
from microgpt_cli.errors import UserError
from microgpt_cli.generation.dtype_policy import choose_dtype, choose_threads
from microgpt_cli.generation.generate import Stops, generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("size", "count", "samples"), [("micro", 90, 3), ("mini", 80, 1)])
def test_the_cache_changes_no_token(size: str, arch: str, temperature: float, count: int, samples: int) -> None:
    model, sampler = lively(size, arch), Sampler(temperature)
    expected = plainly(model, [1, 2, 3], count, sampler, 5, samples)
    assert list(generate(model, [1, 2, 3], count, sampler, UniformStream(5, samples), samples)) == expected
    assert len({tuple(column) for column in expected}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_the_cache_changes_no_token_of_a_larger_model(arch: str) -> None:
    model = lively("small", arch)
    for sampler in (Sampler(0), Sampler(0.9)):
        expected = plainly(model, [1, 2, 3], 400, sampler, 5, 2)
        assert list(generate(model, [1, 2, 3], 400, sampler, UniformStream(5, 2), 2)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True, "position": "learned"},
        {"qkv_bias": True, "position": "rotary"},
        {"norm": "rmsnorm", "bias": False, "activation": "gelu"},
        {"n_layer": 1, "n_head": 1, "n_embd": 6, "block_size": 1},
        {"block_size": 2},
        {"block_size": 3},
    ],
)
def test_nor_of_models_between_the_presets(changes: dict[str, object]) -> None:
    model = lively("micro", "article", **changes)
    expected = plainly(model, [1, 2], 40, Sampler(), 1, 2)
    assert list(generate(model, [1, 2], 40, Sampler(), UniformStream(1, 2), 2)) == expected


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_prompts_of_any_length(length: int) -> None:
    model = lively("micro", "modern")
    prompt = [n * 7 % V for n in range(length)]
    expected = plainly(model, prompt, 40, Sampler(), 1, 1)
    assert list(generate(model, prompt, 40, Sampler(), UniformStream(1, 1))) == expected


@pytest.mark.parametrize("packed", [False, True])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_nor_of_any_model_prompt_window_and_batch(packed: bool, data: st.DataObject) -> None:
    if packed and not can_pack(torch.float32):
        pytest.skip("no oneDNN here")
    n_head, D, block_size = (data.draw(s) for s in (st.integers(1, 3), st.sampled_from([2, 4, 6]), st.integers(1, 9)))
    model = lively(
        "micro", data.draw(st.sampled_from(ARCHES)), n_head=n_head, n_embd=n_head * D,
        n_layer=data.draw(st.integers(1, 2)), block_size=block_size, token_shift=data.draw(st.booleans()),
        qk_norm=data.draw(st.booleans()), activation=data.draw(st.sampled_from(["relu", "gelu", "relu2"])),
    )  # fmt: skip
    prompt = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=2 * block_size))
    samples = data.draw(st.integers(2, 4) if packed else st.integers(1, 4))
    sampler = Sampler(data.draw(st.sampled_from([0.0, 1.0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microgpt_cli.engines.linear.LARGE", 0 if packed else 100_000)
        found = list(generate(model, prompt, 12, sampler, UniformStream(1, samples), samples))
    assert found == plainly(model, prompt, 12, sampler, 1, samples)


@pytest.mark.parametrize("arch", ARCHES)
def test_with_and_without_the_cache_the_same_is_written_until_the_context_is_full(arch: str) -> None:
    model = lively("micro", arch)
    cached, cropped = (
        list(generate(model, [1, 2], 60, Sampler(), UniformStream(0, 2), 2, cache=cache)) for cache in (True, False)
    )
    assert cached[:31] == cropped[:31]
    assert cached != cropped


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_are_those_of_the_layer(dtype: torch.dtype, rows: int, bias: bool) -> None:
    """Whichever kernel multiplies: of float32, from and to float32, within what half precision of the weights costs."""
    if dtype == torch.float16 and not has_float16_linear():
        pytest.skip("no FBGEMM on this CPU")
    torch.manual_seed(0)
    for size in ((48, 16), (400, 320)):
        weight, x = torch.randn(size), torch.randn(rows, size[1])
        shift = torch.randn(size[0]) if bias else None
        expected = torch.nn.functional.linear(x, weight, shift)
        off = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype] * expected.abs().max()
        product, start = pack_linear(weight, shift, dtype, rows), torch.randn(rows, size[0])
        out, total = torch.empty_like(start), start.clone()
        product.write_to(out, x)
        product.add_to(total, x)
        for found in (product(x), out, total - start):
            assert found.dtype == torch.float32
            assert (found - expected).abs().max() < off
        prompt = torch.randn(5, size[1])  # of other rows than it was made for
        assert (product(prompt) - torch.nn.functional.linear(prompt, weight, shift)).abs().max() < off
        logits = pack_head(weight, shift, torch.bfloat16, rows)(x)
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.skipif(not has_float16_linear(), reason="no FBGEMM on this CPU")
def test_logits_that_are_large_together_are_not_rounded_far(rows: int) -> None:
    """GPT-2's are all near -100: in float16, 0.06 apart."""
    weight, bias, x = torch.randn(400, 320) / 100 - 0.3, torch.randn(400), 1 + torch.randn(rows, 320) / 10
    exact = torch.nn.functional.linear(x, weight, bias)
    assert exact.abs().min() > 64
    off = (pack_head(weight, bias, torch.float16, rows)(x) - exact).double()
    assert (off - off.mean(-1, keepdim=True)).abs().max() < 0.005


def logits_of(model: GPT, dtype: torch.dtype, idx: Tensor, prompt: int) -> Tensor:
    """Logits (B, T - prompt + 1, V) after the prompt and after each token that follows."""
    weights = prepare(model, dtype)
    cache = Cache(weights, idx.size(0), idx.size(1))
    with torch.inference_mode():
        after = [prefill(weights, cache, idx[:, :prompt])]
        for position in range(prompt, idx.size(1)):
            after.append(decode_one_token(weights, cache, idx[:, position], position))
    return torch.stack(after, dim=1)


# The largest difference of any logit from the float32 forward pass, over the largest logit, but for what all share.
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float32, 1e-5),
        pytest.param(
            torch.float16, 3e-3, marks=pytest.mark.skipif(not has_float16_linear(), reason="no FBGEMM on this CPU")
        ),
        (torch.bfloat16, 5e-2),
    ],
)
@pytest.mark.parametrize("arch", ARCHES)
def test_logits_are_those_of_the_forward_pass(arch: str, dtype: torch.dtype, bound: float) -> None:
    model = lively("mini", arch)
    idx = torch.randint(V, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, _ = model(idx)
    off = logits_of(model, dtype, idx, prompt=20).float() - exact[:, 19:]
    assert (off - off.mean(-1, keepdim=True)).abs().max() / exact.abs().max() < bound


@pytest.mark.parametrize(
    ("until", "last_size"), [([3, 50, 10, 12, 50, 2, 1, 4], 2), ([32, 32, 32, 32, 50, 1, 50, 50], 3)]
)
def test_samples_that_have_stopped_cost_no_more_work(
    until: list[int], last_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively("micro", "gpt2")
    made: list[list[int]] = []
    sizes = []

    def watched(weights: object, cache: object, tokens: Tensor, position: int) -> Tensor:
        sizes.append(len(tokens))
        return decode_one_token(weights, cache, tokens, position)  # type: ignore[arg-type]

    monkeypatch.setattr("microgpt_cli.generation.generate.decode_one_token", watched)
    for tokens in generate(
        model, [1], 60, Sampler(), UniformStream(3, 8), 8, stopped=lambda row: len(made) >= until[row]
    ):
        made.append(tokens)
    assert len(made) == 50
    assert sizes[0] == 8
    assert sizes[-1] == last_size
    alone = plainly(model, [1], 20, Sampler(), 3, 8)
    for row, count in enumerate(until):
        assert [column[row] for column in made[:count]][:20] == [column[row] for column in alone][:count]


@pytest.mark.parametrize(
    ("has_float16", "has_bfloat16", "samples", "expected"),
    [
        (True, True, 1, torch.float16),
        (True, True, 8, torch.float16),
        (True, True, 64, torch.bfloat16),
        (True, False, 8, torch.float16),
        (True, False, 64, torch.float32),
        (False, True, 1, torch.float32),
        (False, True, 2, torch.bfloat16),
        (False, False, 64, torch.float32),
    ],
)
def test_auto_takes_what_this_cpu_multiplies_fastest(
    has_float16: bool, has_bfloat16: bool, samples: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt_cli.generation.dtype_policy.has_float16_linear", lambda: has_float16)
    monkeypatch.setattr("microgpt_cli.generation.dtype_policy.cpu_multiplies_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr("microgpt_cli.generation.dtype_policy.can_pack", lambda dtype: True)
    micro, small = lively("micro", "gpt2"), lively("small", "gpt2", n_layer=1)
    assert choose_dtype("auto", micro, samples)[0] == torch.float32
    assert choose_dtype("auto", small, samples)[0] == expected
    assert choose_dtype("bfloat16", micro, samples)[0] == torch.bfloat16
    if not has_float16:
        with pytest.raises(UserError, match="dtype=float16"):
            choose_dtype("float16", small, samples)


def test_one_sample_of_a_small_model_takes_one_thread() -> None:
    micro, small = lively("micro", "gpt2"), lively("small", "gpt2", n_layer=1)
    assert choose_threads(micro, 1) == 1
    assert choose_threads(micro, 64) == choose_threads(small, 1) == torch.get_num_threads()


@pytest.mark.parametrize("cache", ["true", "false"])
def test_the_command_cuts_every_sample_at_the_stop(cache: str, microgpt: Run, trained: Path) -> None:
    words = ["sample", str(trained), "num_samples=4", "max_new_tokens=40", "prompt=The ", f"cache={cache}"]
    whole, cut = (microgpt(*words, *more) for more in ([], ["stop=o"]))
    assert (whole.status, cut.status) == (0, 0)
    assert "o" not in cut.out.replace("The ", "")
    for text, start in zip(whole.out.split("The ")[1:], cut.out.split("The ")[1:], strict=True):
        assert text.partition("o")[0].startswith(start.rstrip("\n"))


def test_stops_are_found_across_tokens() -> None:
    stops = Stops(3, CharTokenizer("abc").text_stream, "ab")
    seen = []
    for tokens in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [2, 2, 2]):
        stops.feed(tokens)
        seen.append([stops.is_done(row) for row in range(3)])
    assert seen == [[False] * 3, [True, False, False], [True, True, False], [True, True, False]]


@pytest.mark.parametrize("arch", ARCHES)
def test_the_step_that_a_gpu_replays_is_the_same_step(arch: str) -> None:
    model = lively("micro", arch)
    idx = torch.randint(V, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact, _ = model(idx)
    weights = prepare(model, torch.float32)
    cache = Cache(weights, 3, 32)
    prefill(weights, cache, idx[:, :20])
    for position in range(20, 32):
        for bucket in (position + 1, 32):
            logits = decode_static(weights, cache, idx[:, position], torch.tensor([position]), bucket)
            torch.testing.assert_close(logits, exact[:, position], atol=1e-4, rtol=1e-4)


def test_a_bucket_holds_the_position_and_ends_with_the_cache() -> None:
    for position in range(1024):
        assert position < bucket_for(position, 1024) <= 1024
    assert {bucket_for(position, 1024) for position in range(1024)} == {64, 128, 256, 512, 1024}
    assert bucket_for(31, 32) == 32

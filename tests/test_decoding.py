"""Tokens from the cache are those of the plain forward pass, whatever the model, the batch and the draws."""

from pathlib import Path

import pytest
import torch
from conftest import ARCHES, Run, preset
from torch import Tensor

from microgpt_cli.data.tokenizers import CharTokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.generation.decoding import Cache, decode_one_token, has_half_products, prefill, prepare
from microgpt_cli.generation.generate import Stops, generate
from microgpt_cli.generation.precision import choose_dtype
from microgpt_cli.generation.replay import decode_anywhere, stretch_for
from microgpt_cli.generation.sampling import Draws, Sampler
from microgpt_cli.model.gpt import GPT

V = 30


def lively(size: str, arch: str, **changes: object) -> GPT:
    """A model whose logits differ clearly: no weight is 0 or 1, so none can be forgotten unnoticed."""
    torch.manual_seed(0)
    model = GPT(preset(size, arch, **changes), V).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.3 if name.startswith(("token", "position")) or p.dim() == 1 else 2 * p.size(-1) ** -0.5)
            if name.endswith(("ln1.weight", "ln2.weight", "ln_f.weight")):
                p += 1
    return model


def plainly(model: GPT, prompt: list[int], count: int, sampler: Sampler, seed: int, samples: int) -> list[list[int]]:
    """What `generate` should give: the same window policy, and the whole forward pass for every token."""
    block_size, draws = model.config.block_size, Draws(seed, samples)
    idx = torch.tensor([prompt[-block_size:]] * samples)
    made = []
    for _ in range(count):
        if idx.size(1) > block_size:
            idx = idx[:, -max(1, block_size // 2) :]
        with torch.no_grad():
            logits, _ = model(idx)
        tokens = sampler.pick(logits[:, -1], torch.tensor(draws.next(), dtype=torch.float64)[:, None])
        made.append(tokens.tolist())
        idx = torch.cat((idx, tokens[:, None]), dim=1)
    return made


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("size", "count", "samples"), [("micro", 90, 3), ("mini", 80, 1)])
def test_the_cache_changes_no_token(size: str, arch: str, temperature: float, count: int, samples: int) -> None:
    model, sampler = lively(size, arch), Sampler(temperature)
    expected = plainly(model, [1, 2, 3], count, sampler, 5, samples)
    assert list(generate(model, [1, 2, 3], count, sampler, Draws(5, samples), samples)) == expected
    assert len({tuple(column) for column in expected}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_the_cache_changes_no_token_of_a_larger_model(arch: str) -> None:
    model = lively("small", arch)
    for sampler in (Sampler(0), Sampler(0.9)):
        expected = plainly(model, [1, 2, 3], 400, sampler, 5, 2)
        assert list(generate(model, [1, 2, 3], 400, sampler, Draws(5, 2), 2)) == expected


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
    assert list(generate(model, [1, 2], 40, Sampler(), Draws(1, 2), 2)) == expected


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_prompts_of_any_length(length: int) -> None:
    model = lively("micro", "modern")
    prompt = [n * 7 % V for n in range(length)]
    expected = plainly(model, prompt, 40, Sampler(), 1, 1)
    assert list(generate(model, prompt, 40, Sampler(), Draws(1, 1))) == expected


@pytest.mark.parametrize("arch", ARCHES)
def test_with_and_without_the_cache_the_same_is_written_until_the_context_is_full(arch: str) -> None:
    model = lively("micro", arch)
    cached, cropped = (
        list(generate(model, [1, 2], 60, Sampler(), Draws(0, 2), 2, cache=cache)) for cache in (True, False)
    )
    assert cached[:31] == cropped[:31]
    assert cached != cropped


def logits_of(model: GPT, dtype: torch.dtype, idx: Tensor, prompt: int) -> Tensor:
    """Logits (B, T - prompt + 1, V) after the prompt and after each token that follows."""
    weights = prepare(model, dtype)
    cache = Cache(weights, idx.size(0), idx.size(1))
    with torch.inference_mode():
        after = [prefill(weights, cache, idx[:, :prompt])]
        for position in range(prompt, idx.size(1)):
            after.append(decode_one_token(weights, cache, idx[:, position], position))
    return torch.stack(after, dim=1)


# The largest difference of any logit from the float32 forward pass, over the largest logit.
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float32, 1e-5),
        pytest.param(
            torch.float16, 3e-3, marks=pytest.mark.skipif(not has_half_products(), reason="no FBGEMM on this CPU")
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
    found = logits_of(model, dtype, idx, prompt=20).float()
    assert (found - exact[:, 19:]).abs().max() / exact.abs().max() < bound


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
    for tokens in generate(model, [1], 60, Sampler(), Draws(3, 8), 8, stopped=lambda row: len(made) >= until[row]):
        made.append(tokens)
    assert len(made) == 50
    assert sizes[0] == 8
    assert sizes[-1] == last_size
    alone = plainly(model, [1], 20, Sampler(), 3, 8)
    for row, count in enumerate(until):
        assert [column[row] for column in made[:count]][:20] == [column[row] for column in alone][:count]


def test_auto_takes_float16_weights_for_few_samples_of_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    micro, small = lively("micro", "gpt2"), lively("small", "gpt2")
    for has in (True, False):
        monkeypatch.setattr("microgpt_cli.generation.precision.has_half_products", lambda has=has: has)
        assert choose_dtype("auto", micro, 1)[0] == torch.float32
        assert choose_dtype("auto", small, 64)[0] == torch.float32
        assert choose_dtype("auto", small, 1)[0] == (torch.float16 if has else torch.float32)
    assert choose_dtype("bfloat16", micro, 1)[0] == torch.bfloat16
    with pytest.raises(UserError, match="dtype=float16"):
        choose_dtype("float16", small, 1)


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
        stops.see(tokens)
        seen.append([stops.reached(row) for row in range(3)])
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
        for stretch in (position + 1, 32):
            logits = decode_anywhere(weights, cache, idx[:, position], torch.tensor([position]), stretch)
            torch.testing.assert_close(logits, exact[:, position], atol=1e-4, rtol=1e-4)


def test_a_stretch_holds_the_position_and_ends_with_the_cache() -> None:
    for position in range(1024):
        assert position < stretch_for(position, 1024) <= 1024
    assert {stretch_for(position, 1024) for position in range(1024)} == {64, 128, 256, 512, 1024}
    assert stretch_for(31, 32) == 32

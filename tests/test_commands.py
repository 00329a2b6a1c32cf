"""The verbs, end to end."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import TEXT, TINY, Run, Tried, optim

from microgpt_cli.compute import why_not_native
from microgpt_cli.runs import layout

V, C, T = len(set(TEXT)), 16, 8
PARAMETERS = V * C + T * C + (12 * C * C + 10 * C) + 2 * C + (V * C + V)  # tables, block, ln_f, lm_head


def test_a_run_folder_holds_all_that_is_promised(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        *("config.json", "tokenizer.json", "about.json", "metrics.jsonl", "timings.jsonl", "samples.txt", "loss.png"),
        "result.json",
        *("ckpt", ".hydra", ".lock"),
    }
    assert {p.name for p in (trained / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert "max_steps=30" in (trained / ".hydra" / "overrides.yaml").read_text()
    result = json.loads((trained / "result.json").read_text())
    assert result.pop("seconds") > 0
    assert result.pop("tokens_per_sec") > 0
    assert result["val_loss"] == pytest.approx(result["best_val_loss"])
    for loss in ("val_loss", "best_val_loss"):
        result.pop(loss)
    assert result == {
        "status": "finished",
        "step": 30,
        "val_tokens": round(len(TEXT) * 0.1) - 1,
        "best_step": 30,
        "tokens": 30 * 4 * 8,
        "parameters": PARAMETERS,
        "device": "cpu",
        "dtype": "float32",
        "engine": "torch" if why_not_native() else "native",
        "text_sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
    }
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "=== step 10 ===" in (trained / "samples.txt").read_text()


def test_train_says_what_it_chose_and_what_to_type_next(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    ran = microgpt("train", *TINY, f"data.path={text_file}", "max_steps=3")
    assert ran.status == 0
    assert ran.err == ""  # the bar keeps quiet where there is no terminal
    for word in ("data", "split", "model", "device", "dtype", "engine", "threads", "baselines", "run", "result"):
        assert f"\n{word} " in f"\n{ran.out}"
    run = os.readlink(tmp_path / "outputs" / "latest")
    assert ran.out.rstrip().endswith(f"next      microgpt sample ckpt=outputs/{run}")


def test_a_run_is_not_overwritten(microgpt: Run, trained: Path) -> None:
    ran = microgpt("train", f"out_dir={trained}", f"data.path={trained.parent / 'my.txt'}", *TINY)
    assert ran.status == 2
    assert f"contains a run; continue it with resume={trained}" in ran.err


def test_resuming_takes_more_steps_and_refuses_another_model_or_text(
    microgpt: Run, trained: Path, tmp_path: Path, tried: Tried
) -> None:
    tried("resuming refuses or tells what changed", 4)
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert "already finished at step 30" in microgpt("train", f"resume={run}").err
    refused = microgpt("train", f"resume={run}", "model=mini", "max_steps=40").err
    assert "can't be changed on resume: model.n_layer=4 (the run has 1)" in refused
    assert "optim.beta1" in microgpt("train", f"resume={run}", "optim.beta1=0.5").err
    changed = tmp_path / "changed.txt"
    changed.write_text(TEXT.replace("fox", "cat"))
    ran = microgpt("train", f"resume={run}", "max_steps=40", f"data.path={changed}")
    assert ran.status == 2
    assert "the text has changed" in ran.err
    assert json.loads((run / "config.json").read_text())["max_steps"] == 30
    ran = microgpt("train", f"resume={run}", "max_steps=40", "threads=1")
    assert ran.status == 0, ran.err
    assert json.loads((run / "result.json").read_text())["step"] == 40
    assert json.loads((run / "config.json").read_text())["max_steps"] == 40


def test_resuming_elsewhere_says_that_bits_may_differ(
    microgpt: Run, trained: Path, tmp_path: Path, tried: Tried
) -> None:
    tried("resuming refuses or tells what changed")
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    ran = microgpt("train", f"resume={run}", "max_steps=31", "dtype=bfloat16")
    assert ran.status == 0
    assert "not bit-identical" in ran.out
    assert "dtype float32 → bfloat16" in ran.out


def test_a_run_in_use_is_refused(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with layout.locked(run):
        ran = microgpt("train", f"resume={run}", "max_steps=40")
    assert ran.status == 2
    assert "another process is writing" in ran.err


def test_a_run_that_diverges_exits_1_and_keeps_what_it_had(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    words = [
        *TINY,
        f"data.path={text_file}",
        "max_steps=200",
        "checkpoint_interval=1",
        "out_dir=run",
        "eval_interval=0",
    ]
    ran = microgpt("train", *words, "optim.learning_rate=1e30", "optim.schedule=constant", "optim.grad_clip=0")
    assert ran.status == 1
    assert "at learning rate" in ran.err
    assert ran.err.count("\n") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"
    assert layout.step_folders(tmp_path / "run")


def test_sample_writes_the_prompt_and_its_continuation_and_nothing_else(microgpt: Run, trained: Path) -> None:
    ran = microgpt("sample", f"ckpt={trained}", "prompt=The ", "max_new_tokens=20")
    assert ran.out.startswith("The ")
    assert len(ran.out) == len("The ") + 20
    assert set(ran.out) <= set(TEXT)
    assert microgpt("sample", f"ckpt={trained}", "prompt=The ", "max_new_tokens=20").out == ran.out
    assert microgpt("sample", f"ckpt={trained}", "prompt=The ", "max_new_tokens=20", "stream=false").out == ran.out
    assert microgpt("sample", f"ckpt={trained}", "prompt=The ", "max_new_tokens=20", "seed=2").out != ran.out
    assert microgpt("sample", f"ckpt={trained}", "prompt=The ", "max_new_tokens=0").out == "The "


def test_sample_works_from_a_copied_folder_with_the_text_gone(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    assert microgpt("train", *TINY, f"data.path={text_file}", "max_steps=2", "out_dir=run").status == 0
    text_file.unlink()
    shutil.move(tmp_path / "run", tmp_path / "copied")
    assert microgpt("sample", "copied", "max_new_tokens=5").status == 0
    assert microgpt("sample", "copied/ckpt/step-00000002", "max_new_tokens=5").status == 0


def test_sample_takes_the_newest_run_and_says_which(microgpt: Run, text_file: Path) -> None:
    assert microgpt("train", *TINY, f"data.path={text_file}", "max_steps=2").status == 0
    ran = microgpt("sample", "max_new_tokens=5")
    assert ran.status == 0
    assert ran.err.startswith("from outputs/train/")


def test_sample_to_a_file_from_a_file(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("The fox\n")
    ran = microgpt("sample", str(trained), "prompt_file=prompt.txt", "max_new_tokens=5", "out=made.txt")
    assert ran.out == ""
    made = (tmp_path / "made.txt").read_text()
    assert made.startswith("The fox\n")
    assert len(made) == len("The fox\n") + 5
    assert microgpt("sample", str(trained), "out=no/such/folder.txt").status == 2
    assert microgpt("sample", str(trained), "prompt_file=nope.txt").status == 2


def test_several_samples_and_the_stop(microgpt: Run, trained: Path) -> None:
    three = microgpt("sample", str(trained), "prompt=P", "max_new_tokens=10", "num_samples=3").out
    assert three.count("\n") >= 2
    first = microgpt("sample", str(trained), "prompt=P", "max_new_tokens=10").out
    assert three.startswith(first)
    stop = first[4]
    assert (
        microgpt("sample", str(trained), "prompt=P", "max_new_tokens=10", f"stop={stop}").out
        == "P" + first[1:].split(stop)[0]
    )


def test_sample_names_unknown_characters(microgpt: Run, trained: Path) -> None:
    ran = microgpt("sample", str(trained), "prompt=ab李")
    assert ran.status == 2
    assert "prompt: character '李' (U+674E) at position 2" in ran.err
    assert ran.out == ""


def test_a_prompt_longer_than_the_context_is_cropped_aloud(microgpt: Run, trained: Path) -> None:
    ran = microgpt("sample", str(trained), "prompt=The quick brown fox", "max_new_tokens=1")
    assert ran.status == 0
    assert "the prompt has 19 tokens; the model uses the last 8" in ran.err


def test_bytes_stream_in_whole_characters(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("李明é" * 100, encoding="utf-8")
    words = [*TINY, "tokenizer=byte", "data.path=t.txt", "max_steps=2", "out_dir=run"]
    assert microgpt("train", *words).status == 0
    streamed = microgpt("sample", "run", "max_new_tokens=30", "prompt=李").out
    assert streamed == microgpt("sample", "run", "max_new_tokens=30", "prompt=李", "stream=false").out


def test_eval_of_the_runs_own_text_is_the_loss_that_training_found(microgpt: Run, trained: Path) -> None:
    ran = microgpt("eval", str(trained))
    assert ran.status == 0, ran.err
    result = json.loads((trained / "result.json").read_text())
    assert f"loss                {result['val_loss']:.4f} nats per token" in ran.out
    assert "the validation split" in ran.out
    for word in (
        "perplexity",
        "bits per character",
        "bits per byte",
        "uniform baseline",
        "unigram baseline",
        "bigram baseline",
    ):
        assert word in ran.out


def test_eval_of_another_text_is_over_the_whole_of_it(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("The lazy dog. " * 5)
    ran = microgpt("eval", str(trained), "data.path=other.txt")
    assert ran.status == 0, ran.err
    assert "the whole text" in ran.out
    assert f"{14 * 5 - 1} tokens" in ran.out
    (tmp_path / "odd.txt").write_text("The 李 dog. " * 5)
    assert "character '李'" in microgpt("eval", str(trained), "data.path=odd.txt").err
    (tmp_path / "one.txt").write_text("T")
    assert "evaluation needs at least 2" in microgpt("eval", str(trained), "data.path=one.txt").err


def test_eval_counts_bytes_and_characters_of_both_tokenizers(microgpt: Run, tmp_path: Path) -> None:
    """For a text of two-byte characters, bits per character are twice the bits per byte."""
    (tmp_path / "t.txt").write_text("éé" * 200, encoding="utf-8")
    for kind in ("char", "byte"):
        words = [*TINY, f"tokenizer={kind}", "data.path=t.txt", "max_steps=1", f"out_dir={kind}"]
        assert microgpt("train", *words).status == 0
        lines = microgpt("eval", kind, "split=all").out.splitlines()
        bits = {line[:20].strip(): float(line[20:].split()[0]) for line in lines if line.startswith("bits")}
        assert bits["bits per character"] == pytest.approx(2 * bits["bits per byte"], rel=0.01)


def test_params_prints_the_articles_breakdown(microgpt: Run) -> None:
    out = microgpt("params").out
    for line in (
        "token_embedding_table: 0.00416M parameters",
        "position_embedding_table: 0.002048M parameters",
        "blocks: 0.199168M parameters",
        "ln_f: 0.000128M parameters",
        "lm_head: 0.004225M parameters",
    ):
        assert line in out
    assert "209,729" in out
    assert "4 × 49,792" in out
    plain = microgpt("params", "format=plain").out.splitlines()
    assert plain[0] == "token_embedding_table: 0.00416M parameters"
    assert len(plain) == 5


def test_params_counts_gpt2_with_its_tied_head_once(microgpt: Run) -> None:
    page = json.loads(microgpt("params", "model=gpt2", "arch=gpt2", "vocab_size=50257", "format=json").out)
    assert page["total"] == 124_439_808
    assert sum(part["count"] for part in page["parts"]) == page["total"]
    assert page["without_embeddings"] == page["total"] - 1024 * 768


def test_params_of_a_run(microgpt: Run, trained: Path) -> None:
    page = json.loads(microgpt("params", str(trained), "format=json", "depth=2").out)
    assert page["total"] == json.loads((trained / "result.json").read_text())["parameters"]
    refused = microgpt("params", str(trained), "model=mini")
    assert refused.status == 2
    assert "the checkpoint defines the model" in refused.err


def test_params_counts_the_optimizer_asked_for_or_the_one_of_the_run(
    microgpt: Run, trained: Path, tmp_path: Path
) -> None:
    assert "optim=muon, engine=native" in microgpt("params", "device=cpu").out
    assert "optim=adamw" in microgpt("params", "optim=adamw").out
    model = tmp_path / "model"
    shutil.copytree(layout.step_folders(trained)[0], model, ignore=shutil.ignore_patterns(layout.MANIFEST))
    config = json.loads((model / layout.CONFIG).read_bytes())
    (model / layout.CONFIG).write_text(json.dumps(config | {"optim": vars(optim())}))
    assert "optim=adamw" in microgpt("params", str(model)).out
    refused = microgpt("params", str(trained), "optim=adamw")
    assert (refused.status, "the checkpoint defines the optimizer" in refused.err) == (2, True)

"""A mistake is one line that says what to type instead, and nothing is written: a catalogue."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import Run, Tried

LONG = "x" * 300  # longer than the name of a file may be
# One line, exit status 2, no traceback, nothing written: what is typed, and what the line must say.
MISTAKES: list[tuple[list[str], str]] = [
    (["trian"], "did you mean 'train'?"),
    (["max_steps=3"], "the verb comes first: microgpt train max_steps=3"),
    (["--multirun"], "the verb comes first"),
    (["train", "model.n_layr=4"], "did you mean 'model.n_layer'?"),
    (["train", "learning_rate=1"], "did you mean 'optim.learning_rate'?"),
    (["train", "optim=3", "zzz=1"], "unknown key 'zzz'"),
    (["train", "+zzz=1"], "unknown key 'zzz'"),
    (["train", "++model.zzz=1"], "unknown key 'model.zzz'"),
    (["train", "~model"], "can't be removed"),
    (["train", "word"], "'word' is not of the form key=value"),
    (["train", "--modle"], "unknown flag --modle"),
    (["train", "--cfg"], "--cfg needs a value"),
    (["train", "--resolve"], "--resolve requires --cfg job"),
    (["train", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
    (["train", "--config-name", "nowhere"], "no config named 'nowhere'"),
    (["train", "model=smal"], "did you mean 'small'? choices: gpt2, "),
    (["train", "experiment=articel"], "did you mean 'article'?"),
    (["train", "model="], "model= needs a value"),
    (["train", "model=micro,mini"], "several values need a sweep; add -m"),
    (["train", "max_steps=1,2"], "add -m"),
    (["train", "model.n_layer=abc"], "model.n_layer=abc: must be of type int"),
    (["train", "model.n_layer=4.5"], "model.n_layer=4.5: must be of type int"),
    (["train", "seed=null"], "seed=null: must be of type int"),
    (["train", "threads=many"], "threads=many: must be of type int or null"),
    (["train", "model.qk_norm=7up"], "must be of type bool"),
    (["train", "model.n_embd=65"], "try model.n_embd=64 or 68"),
    (["train", "arch=modern", "model.n_embd=12"], "must be even, not 3"),
    (["train", "model.n_layer=0"], "model.n_layer=0: must be at least 1"),
    (["train", "model.dropout=1"], "must be below 1"),
    (["train", "model.norm=batchnorm"], "choose one of layernorm, rmsnorm"),
    (["train", "optim.learning_rate=0"], "must be above 0"),
    (["train", "optim.learning_rate=nan"], "must be above 0"),
    (["train", "optim.min_learning_rate=1"], "above optim.learning_rate"),
    (["train", "data.val_fraction=1"], "must be below 1"),
    (["train", "data.path=nope.txt"], "data.path=nope.txt: no such file"),
    (["train", "data.path=empty.txt"], "the file is empty"),
    (["train", "data.path=short.txt"], "give at least"),
    (["train", "data.path=latin1.txt"], "not UTF-8 text: invalid continuation byte at byte 3"),
    (["train", "data=run"], "data.source=run"),
    (["train", "device=gpu"], "device=gpu: choose one of auto, cpu, cuda"),
    (["train", "device=cpu", "dtype=float16"], "training needs a GPU"),
    (["train", "dtype=int8"], "choose one of auto, float32"),
    (["train", "batch_size=0"], "must be at least 1"),
    (["train", "out_dir=full"], "out_dir=full: not empty (contains x)"),
    (["train", "resume=nope"], "resume=nope: no such folder"),
    (["train", "resume=latest"], "no run in outputs/ yet"),
    (["train", "resume=full"], "no checkpoint in this folder"),
    (["sample"], "start one: microgpt train"),
    (["sample", "nope"], "ckpt=nope: no such folder"),
    (["sample", "full"], "no checkpoint in this folder"),
    (["sample", "model.pt"], "pickle files are not supported"),
    (["sample", "a", "b"], "'b' is not of the form key=value"),
    (["sample", "ckpt="], "ckpt=: "),
    (["sample", "temperature=-1"], "must be at least 0"),
    (["sample", "top_p=0"], "must be above 0"),
    (["sample", "top_k=0"], "must be at least 1"),
    (["sample", "stop="], "stop=: "),
    (["sample", "prompt=a", "prompt_file=b"], "not both"),
    (["eval"], "ckpt is required, for example: microgpt eval ckpt=outputs/latest"),
    (["doctor", "model=smal"], "did you mean 'small'?"),
    (["doctor", "arch=moderm"], "did you mean 'modern'?"),
    (["doctor", "data=shakespear"], "did you mean 'shakespeare'?"),
    (["doctor", "data.path=nope.txt"], "data.path=nope.txt: no such file"),
    (["doctor", "data.path=short.txt"], "give at least"),
    (["doctor", "tokenizer=chars"], "did you mean 'char'?"),
    (["doctor", "optim=adam"], "did you mean 'adamw'?"),
    (["doctor", "experiment=articel"], "did you mean 'article'?"),
    (["doctor", "resume=full"], "doctor checks new runs"),
    (["doctor", "from_run=nope"], "from_run=nope: no such folder"),
    (["doctor", "out_dir=full"], "not empty (contains x)"),
    (["doctor", "device=gpu"], "device=gpu: choose one of auto, cpu, cuda"),
    (["report"], "no run in outputs/ yet"),
    (["report", "nope"], "run=nope: no such folder"),
    (["report", "full"], "no run in this folder"),
    (["report", "model.pt"], "pickle files are not supported"),
    (["report", "full", "out=nowhere/r.html"], "out=nowhere/r.html: no such folder"),
    (["report", "full", "out=full"], "out=full: is a folder"),
    (["report", "full", "out="], "out=: "),
    (["report", "rum=full"], "did you mean 'run'?"),
    (["report", "a", "b"], "'b' is not of the form key=value"),
    (["eval", "per_token=maybe"], "must be of type bool"),
    (["eval", "full", "per_token=true", "out=no/such/x.html"], "no checkpoint in this folder"),
    (["inspect", "prompt=a"], "start one: microgpt train"),
    (["inspect", "nope", "prompt=a"], "ckpt=nope: no such folder"),
    (["inspect", "full", "prompt=a"], "no checkpoint in this folder"),
    (["inspect", "model.pt", "prompt=a"], "pickle files are not supported"),
    (["inspect"], "prompt is required, for example: microgpt inspect prompt='The function '"),
    (["inspect", "prompt=a", "prompt_file=b"], "not both"),
    (["inspect", "prompt=a", "max_tokens=0"], "must be at least 1"),
    (["inspect", "prompt=a", "device=gpu"], "device=gpu: choose one of"),
    (["inspect", "prompt=a", "layer=3"], "unknown key 'layer'"),
    (["verify"], "ckpt is required, for example: microgpt verify"),
    (["verify", "nope"], "ckpt=nope: no such folder"),
    (["verify", "latest"], "no run in outputs/ yet"),
    (["verify", "full"], "no checkpoint in this folder"),
    (["verify", "model.pt"], "pickle files are not supported"),
    (["verify", "full", "replay=-1"], "must be at least 0"),
    (["verify", "full", "replay=x"], "must be of type int"),
    (["verify", "full", "repaly=3"], "did you mean 'replay'?"),
    (["runs"], "no run in outputs/ yet; start one: microgpt train"),
    (["runs", "full"], "no run in full"),
    (["runs", "run", "nope"], "paths=nope: no such folder"),
    (["runs", "short.txt"], "not a folder"),
    (["runs", "paths=[]"], "give a folder to look for runs in"),
    (["runs", "paths="], "paths= needs a value"),
    (["runs", "run", "sort=best_val_los"], "did you mean 'best_val_loss'?"),
    (["runs", "run", "sort="], "sort=: needs a value"),
    (["runs", "run", "filter=n_layer"], "'n_layer' is not a condition; use the form filter="),
    (["runs", "run", "filter=n_layr>1"], "did you mean 'model.n_layer'?"),
    (["runs", "run", "filter=status=fialed"], "did you mean 'failed'?"),
    (["runs", "run", "filter=n_layer>many"], "needs a number, not 'many'"),
    (["runs", "run", "format=xml"], "choose one of table, csv, json, md"),
    (["runs", "run", "plot=true", "out=nope"], "out=nope: no such folder"),
    (["runs", "run", "plot=true", "out=/proc"], "or choose another folder with out="),
    (["runs", "run", "polt=true"], "did you mean 'plot'?"),
    (["compare"], "give two runs or more"),
    (["compare", "run"], "give two runs or more"),
    (["compare", "run", "nope"], "paths=nope: no such folder"),
    (["compare", "run", "full"], "paths=full: no run in this folder"),
    (["compare", "run", "model.pt"], "pickle files are not supported"),
    (["compare", *["run"] * 27], "at most 26 can be compared"),
    (["compare", "run", "broken", "out=nope"], "out=nope: no such folder"),
    (["compare", "run", "broken", "seed=-1"], "must be at least 0"),
    (["compare", "run", "broken", "temprature=1"], "did you mean 'temperature'?"),
    (["compare", "run", "broken", "device=gpu"], "device=gpu: choose one of auto, cpu"),
    (["params", "vocab_size=0"], "must be at least 1"),
    (["params", "format=xml"], "choose one of table, plain, json"),
    (["shapes", "time=33"], "time=33: exceeds model.block_size=32"),
    (["shapes", "time=0"], "must be at least 1"),
    (["shapes", "batch=0"], "must be at least 1"),
    (["shapes", "vocab_size=0"], "must be at least 1"),
    (["shapes", "depth=-1"], "must be at least 0"),
    (["shapes", "format=plain"], "choose one of table, json"),
    (["shapes", "device=cuda"], "choose one of auto, cpu, meta"),
    (["shapes", "backward=maybe"], "must be of type bool"),
    (["shapes", "batch_size=3"], "did you mean 'batch'?"),
    (["shapes", "model=nano"], "model=nano: no such choice"),
    (["shapes", "nope"], "ckpt=nope: no such folder"),
    (["shapes", "run", "model.n_layer=3"], "the checkpoint defines the model"),
    (["shapes", "broken"], "MANIFEST.json: not a valid JSON file"),
    (["diagram", "out=picture.jpg"], "out=picture.jpg: a picture's name ends in .svg or .png"),
    (["diagram", "out="], "out=: "),
    (["diagram", "out=nope/x.svg"], "out=nope/x.svg: no such folder"),
    (["diagram", "out=/proc/x.svg"], "/proc/x.svg: No such file"),
    (["diagram", "time=33"], "time=33: exceeds model.block_size=32"),
    (["diagram", "theme=pink"], "choose one of auto, light, dark"),
    (["diagram", "batch=0"], "must be at least 1"),
    (["diagram", "model=nano"], "model=nano: no such choice"),
    (["diagram", "nope"], "ckpt=nope: no such folder"),
    (["diagram", "run", "arch=modern"], "the checkpoint defines the model"),
    (["replay"], "no run in outputs/ yet"),
    (["replay", "nope"], "run=nope: no such folder"),
    (["replay", "full"], "no samples in this folder"),
    (["replay", "model.pt"], "pickle files are not supported"),
    (["replay", "run", "speed=0"], "must be above 0"),
    (["replay", "run", "speed=fast"], "must be of type float"),
    (["replay", "run", "spede=2"], "did you mean 'speed'?"),
    (["replay", "run/config.json"], "not a folder"),
    # words
    ([""], "unknown verb ''"),
    (["help"], "verbs: train, doctor, "),
    (["train", "=3"], "'=3' is not of the form key=value"),
    (["train", ""], "'' is not of the form key=value"),
    (["train", "--"], "unknown flag --"),
    (["train", "-x"], "unknown flag -x"),
    (["sample", "run", "--prompt=x"], "unknown flag --prompt=x; options are given as key=value"),
    (["sample", LONG], "no such folder"),
    (["sample", f"x={LONG}"], "unknown key 'x'"),
    (["train", "seed=1", "max_steps=1", "seed=2"], "seed is given twice, as 'seed=1' and 'seed=2'; omit one"),
    (["train", "model=mini", "model=micro"], "model is given twice, as 'model=mini' and 'model=micro'"),
    (["train", "-m", "seed=1,2", "++seed=3"], "seed is given twice"),
    (["train", "-m", "sweep.resume=a", "sweep.resume=b"], "sweep.resume is given twice"),
    (["train", "hydra.job.chdir=true", "hydra.job.chdir=false"], "hydra.job.chdir is given twice"),
    (["sample", "run", "ckpt=latest"], "ckpt is given twice, as 'run' and 'ckpt=latest'"),
    (["runs", "paths=[run]", "full"], "paths is given twice, as 'paths=[run]' and 'full'"),
    # flags
    (["train", "--cfg", "job", "--cfg", "job"], "--cfg is given twice"),
    (["train", "--config-dir", "full", "-cd", "full"], "-cd is given twice"),
    (["train", "--cfg", "nope"], "--cfg nope: choose one of job, hydra, all"),
    (["train", "--info=nope"], "--info nope: choose one of all, config"),
    (["train", "--config-dir", ""], "--config-dir needs a value"),
    (["train", "--config-name="], "--config-name needs a value"),
    (["train", "--config-dir", "-m"], "--config-dir needs a value"),
    (["train", "--config-dir", "short.txt"], "--config-dir short.txt: no such folder"),
    (["train", "--config-path", "nowhere"], "--config-path nowhere: no such folder"),
    (["train", "--config-path", "full"], "no config named 'train'"),
    (["train", "--config-name", "model/micro"], "its defaults list must start with _train"),
    (["train", "--run", "-m", "max_steps=1,2"], "--multirun and --run exclude each other"),
    (["train", "-m", "--cfg", "job"], "--cfg and --multirun exclude each other"),
    (["train", "--run", "max_steps=0"], "must be at least 1"),
    (["train", "--package", "x"], "--package requires --cfg job"),
    (["train", "--package", "x", "--cfg", "job"], "--package x: no such node"),
    (["sample", "run", "-p", "hello"], "--package requires --cfg job"),
    # Hydra's own keys
    (["train", "hydra=3"], "must be a string or a list"),
    (["train", "hydra.zzz=1"], "Key 'zzz' not in 'HydraConf'"),
    (["train", "hydra/launcher=nope"], "hydra/launcher=nope: no such choice; choices: basic"),
    (["train", "hydra.launcher.n_jobs=3"], "Key 'n_jobs' not in"),
    (["train", "hydra.mode=x"], "expected one of [RUN, MULTIRUN]"),
    (["train", "hydra.job.chdir=7up"], "not a valid bool"),
    (["train", "hydra.searchpath=3"], "must be a list of strings"),
    (["train", "~hydra.run"], "does not support deletion"),
    (["train", "-m", "hydra/sweeper=nope"], "no such choice"),
    (["train", "-m", "hydra.sweep.dir=short.txt/x", "max_steps=1,2"], "short.txt/x: Not a directory"),
    # sweeps: every value is checked before the first job
    (["train", "-m", "model.n_layer=abc"], "must be of type int"),
    (["train", "-m", "model.n_layer=1,0"], "model.n_layer=0: must be at least 1"),
    (["train", "-m", "model=micro,nope"], "model=nope: no such choice"),
    (["train", "-m", "max_steps=1,2", "optim.learning_rate=1e-3,0"], "optim.learning_rate=0.0: must be above 0"),
    (["train", "-m", "optim.learning_rate=1,,2"], "Error parsing override"),
    (["train", "-m", "seed=range(1"], "no viable alternative"),
    (["train", "-m", "seed=range(3,1)"], "seed: has no values"),
    (["params", "-m", "vocab_size=1,0"], "must be at least 1"),
    (["train", "-m", "data.path=nope.txt"], "data.path=nope.txt: no such file"),
    (["train", "-m", "data.path=my.txt,empty.txt"], "the file is empty"),
    (["train", "-m", "model.n_embd=64,66", "model.n_head=4,6"], "cannot be split over"),
    (["train", "-m", "seed=range(1000000000)"], "the sweep exceeds the limit of 10,000 jobs"),
    (["train", "-m", "seed=range(101)", "max_steps=range(1,101)"], "the sweep exceeds the limit of 10,000 jobs"),
    (["train", "-m", "hydra/sweeper=grid", "optim.learning_rate=interval(1e-4,1e-1)"], "a grid needs single values"),
    (["train", "-m", "seed=1,2", "out_dir=x"], "each job of a sweep has its own folder"),
    (["train", "-m", "seed=1,2", "resume=run"], "to resume a sweep, give sweep.resume="),
    (["train", "-m", "seed=1,2", "hydra.sweep.subdir=x"], "the jobs' folders are numbered"),
    (["train", "sweep.resume=latest"], "only for sweeps; add -m"),
    (["train", "-m", "sweep.resume=latest"], "no sweep in outputs/sweeps/ yet"),
    (["train", "-m", "sweep.resume=nope"], "sweep.resume=nope: no such folder"),
    (["train", "-m", "sweep.resume=run"], "no sweep in this folder"),
    (["train", "-m", "sweep.resume="], "sweep.resume=: needs a value"),
    (["train", "-m", "sweep.fail_fast=maybe"], "not a valid bool"),
    (["train", "-m", "sweep.resum=latest"], "did you mean 'sweep.resume'?"),
    (["params", "-m", "sweep.resume=latest"], "unknown key 'sweep.resume'"),
    # values
    (["train", "data.path="], "data.path=: needs a value"),
    (["train", "out_dir="], "out_dir=: needs a value"),
    (["sample", "run", "prompt_file="], "prompt_file=: needs a value"),
    (["train", "model=[micro,mini]"], "give one choice; several need a sweep: -m model=micro,mini"),
    (["train", "model={a:1}"], "Key 'a' not in 'ModelConfig'"),
    (["train", "model.n_layer=[1]"], "must be of type int"),
    (["train", "model.n_layer='"], "LexerNoViableAlt"),
    (["train", "model.n_layer==3"], "Error parsing override"),
    (["train", "model.n_layer=${oc.env:HOME}"], "must be of type int"),
    (["train", f"seed={'9' * 5000}"], "Exceeds the limit"),
    (["train", f"seed={'9' * 400}"], "must be at most 9,223,372,036,854,775,807"),
    (["train", "model.n_embd=1000000000000"], "must be at most 65,536"),
    (["train", "model.n_layer=1000000000"], "must be at most 1,000"),
    (["train", "threads=1000000"], "must be at most 1,024"),
    (["train", "max_steps=100000000"], "must be at most 99,999,999"),
    (["train", "batch_size=1000000000000000000"], "must be at most 1,048,576"),
    (["train", "optim.learning_rate=inf"], "must be a finite number"),
    (["train", "optim.learning_rate=1e"], "must be of type float"),
    (["train", "optim=sgd"], "optim=sgd: no such choice; choices: adamw"),
    (["train", "tokenizer=bpe"], "choices: byte, char"),
    (["train", "tokenizer.unknown=ignore"], "choose one of error, replace"),
    (["train", "logger=tensorbord"], "logger=[tensorbord]: did you mean 'tensorboard'? choose one of"),
    (["train", "logger=[wandb,mlflow]"], "choose one of tensorboard, wandb, trackio"),
    (["train", "logger="], "logger= needs a value"),
    (["train", "-m", "logger=wandb,[tensorboard,wanb]"], "did you mean 'wandb'?"),
    (["train", "compile=maybe"], "choose one of auto, true, false"),
    (["train", "engine=maybe"], "choose one of auto, torch, native"),
    (
        ["train", "engine=native", "compile=true"],
        "engine=native: compile=true applies to engine=torch",
    ),
    (["train", "device=cuda:"], "choose one of auto, cpu"),
    (["train", "device=cuda:99"], "device=cuda:99: "),
    (["sample", "run", "temperature=inf"], "must be a finite number"),
    (["sample", "run", "temperature=hot"], "must be of type float"),
    (["sample", "run", "stream=maybe"], "must be of type bool"),
    (["sample", "run", "num_samples=0"], "must be at least 1"),
    (["sample", "run", "max_new_tokens=-1"], "must be at least 0"),
    (["params", "vocab_size=1000000000000000000000000000000"], "must be at most"),
    (["params", "model.n_embd=4000000000", "model.n_head=1"], "must be at most 65,536"),
    (["params", "depth=-1"], "must be at least 0"),
    # texts
    (["train", "data.path=notext"], "no .txt or .md file in this folder"),
    (["train", "data.path=loop"], "no such file or folder"),
    (["train", "data.path=pipe"], "a named pipe, which may have no writer; give data.path=- and < pipe"),
    (["train", f"data.path={LONG}"], "no such file or folder"),
    (["train", "data.path=~nobodyhere/x"], "no such file or folder"),
    (["train", "data=shakespeare", "data.url=nope"], "must begin with https:// or http://"),
    (["train", "data=shakespeare", "data.url=file:///etc/passwd"], "must begin with https:// or http://"),
    (["train", "data=shakespeare", "data.url=null"], "needs data.url"),
    (["train", "data=shakespeare", "data.url=http://127.0.0.1:x/"], "download failed"),
    (["train", "data=shakespeare", "data.file_name=.."], "must be a name alone"),
    (["train", "data=shakespeare", "data.file_name=a/b"], "must be a name alone"),
    (["train", "data=shakespeare", "data.sha256=abc"], "must be 64 hexadecimal digits"),
    (["train", "data=shakespeare", "data.cache_dir=short.txt"], "choose another folder with data.cache_dir"),
    (["eval", "run", "data.path=empty.txt"], "the file is empty"),
    (["eval", "run", "data.path=latin1.txt"], "not UTF-8 text"),
    (["eval", "run", "split=test"], "choose one of auto, train, val, all"),
    (["eval", "run", "data=nope"], "choices: pydocs, run, shakespeare"),
    (["eval", "run", "model=micro"], "unknown key 'model'"),
    (["eval", "run", "batch_size=0"], "must be at least 1"),
    # where to write
    (["train", "out_dir=short.txt", "data.path=my.txt"], "out_dir"),
    (["train", "out_dir=short.txt/x", "data.path=my.txt"], "Not a directory"),
    (["train", "out_dir=/proc/x", "data.path=my.txt"], "/proc/x"),
    (["train", f"out_dir={LONG}", "data.path=my.txt"], "File name too long"),
    (["train", "out_dir=run", "data.path=my.txt"], "contains a run"),
    (["sample", "run", "out=full"], "out=full: is a folder"),
    (["sample", "run", "out=nope/x"], "out=nope/x: no such folder"),
    (["sample", "run", "out=/proc/x"], "/proc/x: No such file"),
    (["sample", "run", f"out={LONG}"], "File name too long"),
    # runs and prompts
    (["sample", "run/config.json"], "not a folder"),
    (["sample", "run/ckpt"], "no checkpoint in this folder"),
    (["sample", "loop"], "no such folder"),
    (["sample", "broken"], "MANIFEST.json: not a valid JSON file"),
    (["eval", "broken"], "MANIFEST.json: not a valid JSON file"),
    (["params", "broken"], "MANIFEST.json: not a valid JSON file"),
    (["train", "resume=broken"], "no valid checkpoint in this folder"),
    (["train", "resume=run"], "already finished at step 30"),
    (["train", "resume=run", "model=mini", "max_steps=40"], "can't be changed on resume"),
    (["train", "resume=run", "data.path=nope", "max_steps=40"], "no such file"),
    (["train", "resume=short.txt"], "not a folder"),
    (["params", "run", "vocab_size=3"], "the checkpoint defines the model"),
    (["sample", "run", "prompt=李"], "character '李' (U+674E) at position 0"),
    (["sample", "run", "prompt_file=latin1.txt"], "U+DCE9) at position 3"),
    (["sample", "run", "prompt_file=full"], "full: Is a directory"),
    (["sample", "run", "prompt_file=nope"], "nope: No such file"),
    (["sample", "run", "prompt_file=pipe"], "pipe: not a regular file"),
    (["sample", "run", "dtype=float16", "device=cpu", "cache=false"], "training needs a GPU"),
]


@pytest.fixture
def things(tmp_path: Path, trained: Path) -> Path:
    """A folder with what a mistake can be made with."""
    (tmp_path / "my.txt").write_bytes((trained.parent / "my.txt").read_bytes())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9" * 1000)
    (tmp_path / "model.pt").write_bytes(b"\x80\x02")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "notext").mkdir()
    (tmp_path / "notext" / "x.py").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("run", "broken"):
        shutil.copytree(trained, tmp_path / name)
    for manifest in (tmp_path / "broken").rglob("MANIFEST.json"):
        manifest.write_text("{")
    return tmp_path


def everything(folder: Path) -> list[tuple[Path, int]]:
    """All files and when they were written, locks and the cache left out."""
    found = [path for path in folder.rglob("*") if path.name != ".lock" and ".cache" not in path.parts]
    return sorted((path, path.lstat().st_mtime_ns) for path in found)


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[" ".join(words)[:70] for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], says: str, microgpt: Run, things: Path, tried: Tried
) -> None:
    tried("a mistake is one line")
    before = everything(things)
    ran = microgpt(*words)
    assert ran.status == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("microgpt")
    assert ran.out == ""
    assert everything(things) == before


@pytest.mark.parametrize("words", [["train", "model=smal"], ["train", "seed=null"], ["params", "-m", "vocab_size=0"]])
def test_a_mistake_is_one_line_where_hydra_is_told_to_show_tracebacks(
    words: list[str], microgpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ran = microgpt(*words)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)


def test_a_line_has_an_end_and_nothing_that_a_terminal_obeys(microgpt: Run) -> None:
    ran = microgpt("train", "data.path=\x1b[2J\u202e\n\t" + "x" * 5000)
    assert ran.err.startswith("microgpt train: data.path=\\x1b[2J\\u202e xxx")
    assert len(ran.err) < 2100

"""Which runs a filter selects."""

from pathlib import Path

import pytest

from microgpt_cli.errors import UserError
from microgpt_cli.runs.filters import matching
from microgpt_cli.runs.reading import Run

RUNS = [
    Run(Path("a"), "finished", {"model.n_layer": 4, "optim.learning_rate": 1e-3, "data.path": None}, 10, 2.0, 1.9),
    Run(Path("b"), "failed", {"model.n_layer": 8, "optim.learning_rate": 3e-3, "data.path": "x and y.txt"}, 5),
    Run(Path("c"), "running", {"model.n_layer": 12, "model.bias": True, "data.path": "12"}, 7, 3.0, 3.0),
]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("status=failed", "b"),
        ("status==failed", "b"),
        ("status != failed", "ac"),
        ("model.n_layer>4", "bc"),
        ("n_layer >= 8 and n_layer<=8", "b"),
        ("n_layer=8", "b"),
        ("n_layer=8.0", "b"),
        ("learning_rate<0.002", "a"),
        ("optim.learning_rate=0.001", "a"),
        ("optim.learning_rate=1e-3", "a"),
        ("best val loss<2", "a"),
        ("loss>1.9", "c"),
        ("best_val_loss=null", "b"),
        ("best_val_loss!=null", "ac"),
        ("model.bias=true", "c"),
        ("model.bias=false", ""),
        ("data.path=null", "a"),
        ("data.path~txt", "b"),
        ("data.path='12'", "c"),
        ("data.path='x and y.txt' and status=failed", "b"),
        ("run=b", "b"),
        ("steps>5 and status=running", "c"),
    ],
)
def test_filter_selects_matching_runs(text: str, names: str) -> None:
    assert "".join(run.path.name for run in matching(RUNS, text)) == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("status", "'status' is not a condition; use the form"),
        ("", "is not a condition"),
        ("status=failed and", "is not a condition"),
        ("__import__('os')", "is not a condition"),
        ("model.n_layr>4", "did you mean 'model.n_layer'?"),
        ("nonsense=4", "no column or setting is named 'nonsense'"),
        ("bias=false and dropout>high", "needs a number, not 'high'"),
        ("status=fialed", "did you mean 'failed'?"),
        ("model.norm=batchnorm", "choose one of layernorm, rmsnorm"),
    ],
)
def test_invalid_filter_names_the_problem(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        matching(RUNS, text)
    assert says in str(error.value)

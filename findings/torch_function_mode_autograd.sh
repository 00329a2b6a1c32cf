#!/usr/bin/env bash
# torch 2.13.0: a TorchFunctionMode does not see torch.autograd.Function.apply, only the operations inside it.
#
# A mode that records a forward pass gets the operations of a custom Function's `forward`, called under no_grad, as if
# they were the model's own, and nothing that names the Function. Replaying the record gives equal values and another
# gradient: the custom `backward` is lost. With a straight-through estimator the gradient 2 becomes 0.
#
# Output seen (Python 3.11):
#   recorded: mul, round (no_grad), sum
#   model: value 2.0, gradient [2.0, 2.0]
#   replay: value 2.0, gradient [0.0, 0.0]
#   replay under the recorded no_grad: value 2.0, gradient None
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - >seen <<'EOF'
import torch
from torch.overrides import TorchFunctionMode


class RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Recorder(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, torch.is_grad_enabled(), result))
        return result


def show(name, x, y):
    gradient = torch.autograd.grad(y, x)[0].tolist() if y.requires_grad else None
    print(f"{name}: value {y.item()}, gradient {gradient}")


def replay(calls, x, *, keep_no_grad):
    values = {id(start): x}
    for function, args, kwargs, grad_enabled, result in calls:
        with torch.set_grad_enabled(grad_enabled or not keep_no_grad):
            values[id(result)] = function(*(values.get(id(arg), arg) for arg in args), **kwargs)
    return values[id(calls[-1][-1])]


start = torch.tensor([0.3, 0.7], requires_grad=True)
with Recorder() as recorder:
    y = RoundStraightThrough.apply(start * 2).sum()
calls = recorder.calls
print("recorded:", ", ".join(call[0].__name__ + ("" if call[3] else " (no_grad)") for call in calls))
show("model", start, y)
for name, keep in (("replay", False), ("replay under the recorded no_grad", True)):
    x = start.detach().clone().requires_grad_()
    show(name, x, replay(calls, x, keep_no_grad=keep))
EOF
cat seen
diff seen - <<'EOF'
recorded: mul, round (no_grad), sum
model: value 2.0, gradient [2.0, 2.0]
replay: value 2.0, gradient [0.0, 0.0]
replay under the recorded no_grad: value 2.0, gradient None
EOF

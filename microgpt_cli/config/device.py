"""What keys of several verbs may say about where and how to compute."""

from microgpt_cli.errors import UserError

DEVICE = "auto, cpu, cuda, cuda:N or mps"
MOST_THREADS = 1024
DTYPES = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("auto", "torch", "native")


def check_device(device: str) -> None:
    """Raises `UserError` unless `device` is one of `DEVICE`; whether it is there is asked later."""
    name, colon, index = device.partition(":")
    if device not in ("auto", "cpu", "cuda", "mps") and not (
        name == "cuda" and colon and index.isascii() and index.isdecimal()
    ):
        raise UserError(f"device={device}: choose one of {DEVICE}")

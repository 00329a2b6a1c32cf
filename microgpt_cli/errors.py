"""What a person can mend: raised anywhere, shown by `cli.py` as one line, never as a traceback."""


class UserError(Exception):
    """Bad input. The message names the key, the value given and the remedy; nothing was written."""

    exit_status = 2


class RunStopped(UserError):
    """A run that began and could not go on: what it had saved is kept."""

    exit_status = 1


class Interrupted(KeyboardInterrupt):
    """A run that a signal stopped after it had saved. No Exception: a sweep shall not go on to its next job.

    Args:
        message: what to type next.
        signal_number: the signal; the exit status is 128 + signal_number, as shells have it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number

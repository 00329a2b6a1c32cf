"""Errors that the user can fix: the command line prints them as one line, without a traceback."""


class UserError(Exception):
    """Invalid input. The message names the key, the value and the remedy; nothing was written."""

    exit_status = 2


class RunStopped(UserError):
    """A run that started and failed. Its saved files are kept."""

    exit_status = 1


class Interrupted(KeyboardInterrupt):
    """A run that a signal stopped after saving. Not an `Exception`, so that a sweep does not start its next job.

    Args:
        message: how to resume.
        signal_number: the exit status is 128 + signal_number, as in shells.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number

"""The errors a person can cause, each with the exit code that a scheduler or a script reads.

An error of these kinds is printed as one line (`GRAMJAX_TRACEBACK=1` shows where it came from); anything else
is a bug and keeps its traceback and exit code 1. A message says what was found, where, and what to do.
"""


class GramjaxError(Exception):
    """Base of the errors that end a job with a clear line."""

    exit_code = 1
    agreed = False
    """Whether all processes of the job raise it at the same place; else the one that does leaves without the others."""


class UserError(GramjaxError):
    """A setting, a path or a command is wrong."""

    exit_code = 2


class DataError(GramjaxError):
    """A file that was read holds something that cannot be used."""

    exit_code = 3


class Preempted(GramjaxError):
    """The job was asked to stop and has saved its state: run the same command again to go on."""

    exit_code = 75
    agreed = True


class DoNotRequeue(GramjaxError):
    """The job would fail again in the same place: a scheduler must not start it anew."""

    exit_code = 76


class NotFinite(DoNotRequeue):
    """The loss, the gradients or the weights are NaN or infinite; nothing of it was saved."""

    agreed = True


STUCK = 77
"""Exit code of a process that its watchdog ended: nothing moved any more. Starting it again may help."""

"""The errors that a user can cause, each with the exit code of a command that it ends."""

from collections.abc import Sequence


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line, or its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU or of the CPU is exhausted; for the CPU, torch raises RuntimeError."""
    name = type(error).__name__
    return name in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error)


class IsasegError(Exception):
    """A fault that the user can fix; its message says what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(IsasegError):
    """A configuration key or value that cannot work; the message names the dotted key."""


class DataError(IsasegError):
    """A data set that is missing, incomplete or wrong; the message names the file."""


class CheckpointError(IsasegError):
    """A checkpoint that is missing, damaged or from another configuration."""


class DivergenceError(IsasegError):
    """A loss or gradient that is not finite, found before the optimizer step."""

    exit_code = 3


class OutOfMemory(IsasegError):
    """A training step that does not fit into the memory of the device."""

    exit_code = 4


class SweepError(IsasegError):
    """A sweep of which some jobs did not finish; each has been reported already, with its log."""

    exit_code = 1

    def __init__(self, messages: Sequence[str], total: int) -> None:
        listed = "".join(f"\n  {message}" for message in dict.fromkeys(messages))
        super().__init__(
            f"{len(messages)} of {total} jobs did not finish; the same command tries again:{listed}"
        )

"""The errors a user can cause, each with the exit code that `train.py` gives it."""


class IsasegError(Exception):
    """A fault that the user can mend; its message says what, where and how."""

    exit_code = 2


class ConfigError(IsasegError):
    """A configuration key or value that cannot work; the message names the dotted key."""


class DataError(IsasegError):
    """A data set that is absent, incomplete or wrong; the message names the file."""


class CheckpointError(IsasegError):
    """A checkpoint that is missing, damaged or made by another configuration."""


class DivergenceError(IsasegError):
    """A loss or gradient that is not finite, found before the optimizer step."""

    exit_code = 3

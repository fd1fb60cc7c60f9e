"""What the commands of src/ share: composing of KEY=VALUE words, and every fault told in one sentence."""

import errno
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.errors import IsasegError


def run(work: Callable[[], int], config_name: str, script: str, interrupted: str) -> int:
    """Return what `work` returns, or the exit code of its fault.

    2 bad input or a file that cannot be used, 4 out of memory, 130 or 143 interrupted by Ctrl-C or SIGTERM.

    Args:
        work: Does it.
        config_name: Root of the configuration, for suggestions.
        script: The command, for people.
        interrupted: What is left after an interruption.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except OverrideParseException as error:
        return _tell(f"expected KEY=VALUE, got {error.override!r}; quotes may be missing, see --help", 2)
    except (HydraException, OmegaConfBaseException) as error:
        return _tell(config.explain(error, config_name, script), 2)
    except IsasegError as error:
        return _tell(error, error.exit_code)
    except _Terminated:
        return _tell(f"terminated; {interrupted}", 143)
    except KeyboardInterrupt:
        return _tell(f"interrupted; {interrupted}", 130)
    except OSError as error:
        return _tell(of_file(error), 2)
    except (MemoryError, RuntimeError) as error:
        from isaseg.training.out_of_memory import is_exhausted  # imports torch

        if not is_exhausted(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return _tell(
            f"expected the work to fit into memory, got none left ({first[:200]}); take smaller batches, windows or "
            f"pictures, or half precision: see `python {script} --help`",
            4,
        )


def of_file(error: OSError) -> str:
    """Return in one sentence what the system refused to do with a file or folder.

    Raises:
        OSError: The same, if it is of none, or of too many that are open.
    """
    if error.filename is None or error.errno in (errno.EMFILE, errno.ENFILE):
        raise error
    return (
        f"expected a file or folder that can be used, got '{error.filename}': {error.strerror}; name another, or mend "
        "its rights or its disk"
    )


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which shall end a command as Ctrl-C does, so that its temporary files and processes end with it."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _tell(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code

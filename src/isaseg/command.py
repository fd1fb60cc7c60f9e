"""What the commands of src/ that take KEY=VALUE words share: composing, and every fault told in one sentence."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.errors import ConfigError, IsasegError


def run(work: Callable[[], int], config_name: str, script: str, interrupted: str) -> int:
    """Return what `work` returns, or the exit code of its fault: 2 bad input, 130 interrupted.

    Args:
        work: Does it.
        config_name: Root of the configuration, for suggestions.
        script: The command, for people.
        interrupted: What is left after an interruption.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files end with this process
    try:
        return work()
    except OverrideParseException as error:
        return _tell(f"expected KEY=VALUE, got {error.override!r}; quotes may be missing, see --help", 2)
    except (HydraException, OmegaConfBaseException) as error:
        return _tell(config.explain(error, config_name, script), 2)
    except IsasegError as error:
        return _tell(error, error.exit_code)
    except KeyboardInterrupt:
        return _tell(f"interrupted; {interrupted}", 130)


def composed(config_name: str, words: Sequence[str], script: str) -> DictConfig:
    """Return the configuration of KEY=VALUE words.

    Raises:
        ConfigError: For any other word.
    """
    strange = [word for word in words if word.startswith("-") or "=" not in word]
    if strange:
        raise ConfigError(f"expected KEY=VALUE, got {strange[0]!r}; see `python {script} --help`")
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return compose(config_name, overrides=list(words))


def _tell(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code

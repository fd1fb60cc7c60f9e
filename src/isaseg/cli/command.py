"""What all commands share: one style of help, and every fault reported in one sentence."""

import argparse
import errno
import gc
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from isaseg import config
from isaseg.console import as_typed
from isaseg.errors import IsasegError, is_out_of_memory
from isaseg.trust import take_trust

# what Hydra reads as another type than text
_NO_TEXT = re.compile(r"null|true|false|inf|nan|[-+]?[\d._]+(e[-+]?\d+)?", re.IGNORECASE)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: its temporary files and its processes go with it."""


def main(
    text: str | None,
    work: Callable[[list[str]], int],
    words: Sequence[str] | None,
    interrupted: str,
    needs_words: bool = True,
) -> int:
    """Run a command that takes KEY=VALUE words, or print its help; return the exit code, see `run`.

    Args:
        text: The docstring of the command's module: summary, `usage: isaseg NAME ...` and rest, with empty lines between.
        work: Does the work, given the words, and returns the exit code.
        words: The words; None: those of this process.
        interrupted: What an interruption leaves, for people.
        needs_words: Whether it is bad input to give none.
    """
    words = sys.argv[1:] if words is None else list(words)
    options = words[: words.index("--")] if "--" in words else words  # what follows may have any name
    is_empty = needs_words and not words
    rest = words[len(options) :]
    if is_empty or {"-h", "--help"} & set(options):
        summary, usage, details = as_typed(str(text)).split("\n\n", 2)
        print(f"{usage}\n\n{summary}\n\n{details.rstrip()}")
        return 2 if is_empty else 0
    options = _one_word(options)
    return run(lambda: _trusting(work, options, rest), interrupted, options)


def parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that takes --options; `text` is the docstring of its module, as for `main`."""
    summary, _, rest = as_typed(str(text)).partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(as_typed(f"isaseg {name}"), None, summary, rest, formatter_class=formatter)


def run(work: Callable[[], int], interrupted: str, words: Sequence[str] = ()) -> int:
    """Return what `work` returns, or the exit code of its fault, which is reported in one sentence.

    The codes: 2 bad input or a file that cannot be used, 3 divergence, 4 out of memory, 130 Ctrl-C, 143 SIGTERM. Any
    other exception is a bug and passes.

    Args:
        work: Does the work.
        interrupted: What an interruption leaves, for people.
        words: Of the command line, KEY=VALUE.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except config.UNREADABLE as error:
        return report(config.explain(error, words=words))
    except IsasegError as error:
        return report(error, error.exit_code)
    except Terminated:
        return report(f"terminated; {interrupted}", 143)
    except KeyboardInterrupt:
        return report(f"interrupted; {interrupted}", 130)
    except OSError as error:
        return report(_of_file(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return report(
            f"expected the work to fit into memory, got none left ({first[:200]}); use smaller batches, windows or "
            "images, or half precision: see --help",
            4,
        )


def report(message: object, code: int = 2) -> int:
    """Print an error and return its exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import without the garbage collector, which finds nothing in modules but takes up to a quarter of the time.

    It never looks at what was imported before the block ends, so loader processes do not copy those pages.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _trusting(work: Callable[[list[str]], int], words: Sequence[str], rest: Sequence[str]) -> int:
    """Trust the packages that words name, and do the work with the others: Hydra, and so a file, has no such key."""
    config.user_dirs(words)
    return work([*take_trust(words), *rest])


def _one_word(words: Sequence[str]) -> list[str]:
    """Return the words with `--config-dir DIR` as `--config-dir=DIR`, and options as Hydra takes them, see `_option`."""
    text = re.sub(r"(^|\0)(?:--config-dir|-cd)\0", r"\1--config-dir=", "\0".join(words))
    return [re.sub(r"^([+]{0,2}[a-z_/]+)=([\w.+-]+)$", _option, word) for word in text.split("\0") if text]


def _option(word: re.Match[str]) -> str:
    """Return GROUP=null as what Hydra takes for none, and a number as the name of an option, which no number is."""
    group, value = word.groups()
    if not (config.conf_dir() / group.lstrip("+")).is_dir() or not _NO_TEXT.fullmatch(value):
        return word[0]
    return f"{group}=[]" if value.lower() == "null" else f"{group}='{value}'"


def _of_file(error: OSError) -> str:
    """Return what the system refused to do with a file; raise the error if it is about none, or about too many."""
    if error.filename is None or error.errno in (errno.EMFILE, errno.ENFILE):
        raise error
    return (
        f"expected a file or folder that can be used, got '{error.filename}': {error.strerror}; name another, or fix "
        "its permissions or its disk"
    )


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated

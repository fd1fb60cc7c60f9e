"""The commands of src/ as processes of their own, which need not import torch and Lightning anew.

Each is forked from a process that has imported these and done nothing else: with its own folder, environment, words,
output, signals and end of the interpreter. `test_train.py` starts a whole interpreter too, and so does a wheel's sweep.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[1]
CURVES = (
    "ISASEG_TEST_CURVES"  # in the environment of a command that is to draw curves.png, which takes a while
)
_MODULES = (
    "isaseg.training.run",
    "isaseg.inference.evaluate",
    "isaseg.report.reach",
    "isaseg.data.module",
    "torch._dynamo",
)


class Running:
    """A command that has been started; until it has ended, no other can be.

    Attributes:
        pid: Its process.
    """

    def __init__(self, command: list[str], folder: "tempfile.TemporaryDirectory[str]", **asked: Any) -> None:
        self._command, self._folder, self._server = command, folder, _server()
        self._printed = [str(Path(folder.name, name)) for name in ("out", "err")]
        assert self._server.stdin is not None and self._server.stdout is not None
        asked |= dict(zip(("out", "err"), self._printed, strict=True))
        self._server.stdin.write(json.dumps({"command": command, **asked}) + "\n")
        self._server.stdin.flush()
        self.pid = int(self._server.stdout.readline())

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Return how it ended, with what it printed."""
        assert self._server.stdout is not None
        code = int(self._server.stdout.readline())
        with self._folder:
            return subprocess.CompletedProcess(
                self._command, code, *(Path(path).read_text() for path in self._printed)
            )


def start(
    script: str | Path, *words: str, cwd: Path, seconds: int = 300, children: bool = False, **env: str | None
) -> Running:
    """Start `python src/SCRIPT WORDS`; after `seconds` it is ended by SIGALRM.

    A script of a test has its whole path. What `env` gives as None is not in the environment. With `children`, each
    Python that the command starts is forked from it, but for `make test-stress`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return Running(
        [str(ROOT / "src" / script), *words],
        tempfile.TemporaryDirectory(),
        cwd=str(cwd),
        env={name: value for name, value in environment.items() if value is not None},
        seconds=seconds,
        children=children and not os.environ.get("ISASEG_STRESS"),
    )


def run(
    script: str | Path, *words: str, cwd: Path, seconds: int = 300, children: bool = False, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Return how `python src/SCRIPT WORDS` ended, with what it printed; see `start`."""
    return start(script, *words, cwd=cwd, seconds=seconds, children=children, **env).wait()


@functools.cache
def _server() -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # it ends with its input
    return process


def _serve() -> None:
    """Fork a command for each line that asks for one, and answer with its exit code."""
    for name in _MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # whatever a command collects, it need not copy these pages
    for line in sys.stdin:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            return _become(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class _Child(subprocess.Popen[Any]):
    """A Python that a command starts; it goes on as what its command line says, with all that is imported."""

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        prepare = options.pop("preexec_fn", None)

        def become() -> None:
            # Popen waits until this end of its pipe is closed, as a new program would
            os.close(sys._getframe(1).f_locals["errpipe_write"])
            if prepare is not None:
                prepare()
            os._exit(_ended(args, options.get("env") or os.environ))

        sys.stdout.flush()
        sys.stderr.flush()
        super().__init__(args, preexec_fn=become if args[0] == sys.executable else prepare, **options)


def _ended(args: Sequence[str], env: Mapping[str, str]) -> int:
    """Run `python ARGS` in this process; return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _set_environment(dict(env))
    GlobalHydra.instance().clear()
    words = [word for word in args[1:] if word != "-u"]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            _run_script(words)
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _set_environment(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


def _run_script(command: list[str]) -> None:
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def _become(
    command: list[str], cwd: str, env: dict[str, str], out: str, err: str, seconds: int, children: bool
) -> None:
    """Go on as the command, and end as it does."""
    from wandb.sdk.data_types._private import MEDIA_TMP

    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags), number)
    os.chdir(cwd)
    _set_environment(env)
    if CURVES not in env:
        importlib.import_module("isaseg.training.run").plot_curves = lambda folder: None  # type: ignore[attr-defined]
    # W&B made a folder when it was imported, which the first command to end would remove
    MEDIA_TMP._finalizer.detach()
    MEDIA_TMP.__init__("wandb-media")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    signal.alarm(seconds)
    if children:
        cv2.setNumThreads(1)  # its threads would be lost in what is forked later
        subprocess.Popen = _Child  # type: ignore[misc]
    _run_script(command)


if __name__ == "__main__":
    _serve()

"""The commands of src/ as processes of their own, which need not import torch and Lightning anew.

Each is forked from a process that has imported these and done nothing else: with its own folder, environment, words,
output, signals and end of the interpreter. `test_train.py` starts a whole interpreter too, and so do sweeps.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MODULES = (
    "isaseg.training.run",
    "isaseg.inference.evaluate",
    "isaseg.report.reach",
    "isaseg.data.module",
    "torch._dynamo",
)


def run(
    script: str | Path, *words: str, cwd: Path, seconds: int = 300, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Return how `python src/SCRIPT WORDS` ended, with what it printed; after `seconds` it is ended by SIGALRM.

    A script of a test has its whole path. What `env` gives as None is not in the environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        command = [str(ROOT / "src" / script), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        asked = {
            "command": command,
            "cwd": str(cwd),
            "env": {name: value for name, value in environment.items() if value is not None},
            "out": str(out),
            "err": str(err),
            "seconds": seconds,
        }
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


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
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(command: list[str], cwd: str, env: dict[str, Any], out: str, err: str, seconds: int) -> None:
    """Go on as the command, and end as it does."""
    from wandb.sdk.data_types._private import MEDIA_TMP

    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # W&B made a folder when it was imported, which the first command to end would remove
    MEDIA_TMP._finalizer.detach()
    MEDIA_TMP.__init__("wandb-media")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    signal.alarm(seconds)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()

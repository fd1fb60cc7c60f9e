"""The other end of serve.py."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isaseg.errors import ConfigError


class Served:
    """A process that times samples when it is asked, and is idle otherwise."""

    def __init__(self, command: Sequence[str], task: Mapping[str, Any], threads: int = 1) -> None:
        found = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        env["PYTHONPATH"] = os.pathsep.join(found)
        # a pipe that nobody empties would block it; closed by `end`
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, text=True, env=env
        )
        self.facts = self.ask(task)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer.

        Raises:
            ConfigError: If the process ended; with its last words.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.words.seek(0)
            words = self.words.read().strip().splitlines() or ["nothing"]
            raise ConfigError(f"a measured process ended: {words[-1]}")
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.words.close()

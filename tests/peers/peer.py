"""How a script of this folder is run by the Python of the other code bases, which `make peers` installs."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"


def run_peer(script: str, task: dict[str, Any], folder: Path) -> None:
    """Run a script on a task, which it reads from a file in `folder`."""
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [str(PEER), str(ROOT / "tests" / "peers" / script), str(folder / "task.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]

"""S8 and exit codes: what the README tells the reader to type."""

import json
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests import forked
from tests.reliability.small import SMALL, loaded
from tests.wandb_file import read_run_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FEW = [*SMALL, "trainer.max_steps=4", "trainer.val_check_interval=4", "optim.total_steps=4"]

FAULTS = """
import os
if fault := os.environ.pop("FAULT", ""):
    import signal
    from isaseg.training.module import SegmentationModule
    step = SegmentationModule.training_step
    def faulty(self, *args):
        if self.global_step == 1:
            if fault == "bug":
                raise ZeroDivisionError("a bug")
            if fault == "memory":
                raise MemoryError
            if fault in ("SIGINT", "SIGTERM"):
                signal.raise_signal(signal.Signals[fault])
        return step(self, *args)
    SegmentationModule.training_step = faulty
    score = SegmentationModule.validation_step
    def terminated(self, *args):
        if fault == "SIGTERM while scoring" and self.trainer.state.fn == "validate":
            signal.raise_signal(signal.SIGTERM)
        return score(self, *args)
    SegmentationModule.validation_step = terminated
"""

TRAIN = f"""
import runpy, sys
sys.argv[0] = {str(ROOT / "src" / "train.py")!r}
sys.path[0] = {str(ROOT / "src")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

CODES = {
    0: ("", ["attention=dense", "seed=1", "data.num_workers=2"]),
    1: ("bug", ["logger=wandb"]),
    2: ("", ["attention.group_size=[0,8]"]),
    3: ("", ["optim.lr=1e30", "trainer.gradient_clip_val=null"]),
    4: ("memory", []),
    130: ("SIGINT", []),
    143: ("SIGTERM", ["logger=wandb"]),
}


@pytest.mark.parametrize("code", CODES)
def test_r3_the_exit_codes_are_those_of_the_readme(code: int, tmp_path: Path) -> None:
    """A run that is not complete never ends with 0; a signal leaves a checkpoint, with which r4 goes on."""
    fault, words = CODES[code]
    run = tmp_path / "run"
    words = [*FEW, *words, f"run_dir={run}"]
    (tmp_path / "faulty.py").write_text(FAULTS + TRAIN)
    done = forked.run(tmp_path / "faulty.py", *words, cwd=tmp_path, FAULT=fault)
    assert done.returncode == code, done.stderr
    assert (run / "metrics.json").exists() == (code == 0)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == (code not in (0, 1))
    assert ("lower optim.lr, or set trainer.gradient_clip_val=1" in done.stderr) == (code == 3)
    assert ("Traceback" in done.stderr) == (code == 1), done.stderr
    assert (run / "failed.txt").exists() == (code in (1, 3, 4))
    if "logger=wandb" in words:
        assert read_run_folder(run).exit_code == 1, "W&B's file was closed"
    if code > 100:
        assert loaded(run / "checkpoints" / "last.ckpt")["global_step"] == 2, "due at the last step alone"


def test_a_signal_while_the_best_checkpoint_is_scored_has_the_same_code(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTS + TRAIN)
    words = [*FEW, f"run_dir={tmp_path / 'run'}"]
    done = forked.run(tmp_path / "faulty.py", *words, cwd=tmp_path, FAULT="SIGTERM while scoring")
    assert done.returncode == 143, done.stderr
    assert done.stderr.endswith("error: terminated; the same command continues from the last checkpoint\n")
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_c2_a_disk_without_room_for_a_small_file_is_reported(tmp_path: Path) -> None:
    """No file may be longer than 1000 bytes: config.yaml cannot be written."""
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""
    (tmp_path / "full.py").write_text(limit + TRAIN)
    run = tmp_path / "run"
    done = forked.run(tmp_path / "full.py", *FEW, f"run_dir={run}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert (
        f"error: expected a file or folder that can be used, got '{run}/config.yaml': File too" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "config.yaml" not in os.listdir(run)


def test_every_exit_code_is_documented() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)
    assert [int(code) for code in rows] == list(CODES)


def test_s7_s8_the_readmes_first_command_runs(tmp_path: Path) -> None:
    """Shortened by words at its end; it leaves nothing in the folder of temporary files."""
    assert re.search("^make train( |$)", README, re.MULTILINE)
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("would install")
    words = shlex.join([*FEW, "logger=wandb", "data.num_workers=2", f"output_dir={tmp_path / 'out'}"])
    before = set(os.listdir(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        line = ["make", "train", f"ARGS={words}"]
        done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        assert os.listdir(temporary) == []
    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.rglob("metrics.json")
    assert 0 <= json.loads(metrics.read_text())["val/mIoU"] <= 1
    assert set(os.listdir(ROOT)) == before

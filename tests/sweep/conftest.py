"""What several tests of sweeps use."""

from pathlib import Path

import pytest

from isaseg.sweep import jobs, supervise
from tests.sweep.fake import FAKE_TRAIN


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in in the place of train.py, on a machine without GPUs; return its path."""
    path = tmp_path / "fake_train.py"
    path.write_text(FAKE_TRAIN)
    monkeypatch.setattr(supervise, "_POLL", 0.02)
    monkeypatch.setattr(jobs, "_TRAIN", [str(path)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return path

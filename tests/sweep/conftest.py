"""What several tests of sweeps use."""

from pathlib import Path

import pytest

from tests.sweep.fake import FAKE_TRAIN


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return the path of a stand-in for train.py."""
    path = tmp_path / "fake_train.py"
    path.write_text(FAKE_TRAIN)
    return path

"""What every test gets: no network, one thread, nothing written outside its own folder."""

import os
import socket
import tempfile
from typing import Any

os.environ.update(
    NO_ALBUMENTATIONS_UPDATE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HOME"] = tempfile.mkdtemp(prefix="isaseg-test-home-")

import pytest
import torch

torch.set_num_threads(1)
_connect = socket.socket.connect


def _only_loopback(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"tests reach no network, got {address}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _only_loopback)

"""What every test gets: no network, one thread, nothing written outside its own folder."""

import atexit
import gc
import ipaddress
import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.update(
    NO_ALBUMENTATIONS_UPDATE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HOME"] = tempfile.mkdtemp(prefix="isaseg-test-home-")  # W&B keeps files there

import hypothesis  # noqa: F401  while the collector sees all: a command freezes it, and hypothesis then warns of trio's state
import pytest
import torch
from hydra import initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

from isaseg import config
from isaseg.models.segmenter import Segmenter
from isaseg.runs import facts
from isaseg.training import run
from isaseg.trust import VARIABLE
from tests import composed
from tests.ownlab import CONF, OWNLAB

atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
torch.set_num_threads(1)
# torch.export registers a GPU that is none, for which the first backward pass starts threads; no forked process could
# then train (pytorch's wiki, Autograd-and-Fork). So the first one is here.
torch.zeros((), requires_grad=True).backward()


def _is_here(family: int, address: Any) -> bool:
    if family == socket.AF_UNIX or address[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:  # a name: it would have to be asked of a server
        return False


def _guard(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    def only_loopback(self: socket.socket, address: Any) -> Any:
        if not _is_here(self.family, address):
            raise OSError(f"tests reach no network, got {address}")
        return connect(self, address)

    return only_loopback


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Spare the garbage collector the million objects that imports have left, which each full collection would walk."""
    gc.collect()
    gc.freeze()


# For the whole session, so that fixtures of any scope are guarded too.
for _name in ("connect", "connect_ex"):
    setattr(socket.socket, _name, _guard(getattr(socket.socket, _name)))


Plugins.instance()  # registers it
_Files: Any = SourcesRegistry.instance().resolve("file")
_CONF = str(config.conf_dir())
_read = _Files.load_config
_files: dict[tuple[str, str], bytes] = {}


def _read_once(self: ConfigSource, config_path: str) -> ConfigResult:
    """Give a copy of a file of conf/, which no test changes: a composition takes thirty and would parse each anew."""
    if self.path != _CONF:
        return _read(self, config_path)  # type: ignore[no-any-return]
    key = self.provider, config_path
    if key not in _files:
        _files[key] = pickle.dumps(_read(self, config_path))  # whose copies take a seventh of deepcopy's time
    return pickle.loads(_files[key])


_Files.load_config = _read_once


# Curves take a sixth of a small training. Those who look at them draw them: tests/training/test_train.py.
run.plot_curves = lambda folder: None
_count = facts._outside
_counts: dict[tuple[str, tuple[int, ...]], tuple[int | None, tuple[int, int] | None]] = {}


def _count_once(segmenter: Segmenter, crop_size: Sequence[int]) -> tuple[int | None, tuple[int, int] | None]:
    """Count the operations of a network once; `tests/runs/test_facts.py` counts them anew."""
    key = repr(segmenter), tuple(crop_size)
    if key not in _counts:
        _counts[key] = _count(segmenter, crop_size)
    return _counts[key]


facts._outside = _count_once


def compose_overrides(*overrides: str) -> DictConfig:
    """Return the configuration that `train.py` would get from this command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return composed.compose("train", config.with_experiment(overrides))


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """Give `compose(*overrides)`, as `compose_overrides`."""
    return compose_overrides


@pytest.fixture
def ownlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the current folder, with a package `ownlab`, which leaves a file `ran` when imported, and `conf` for it."""
    (tmp_path / "ownlab.py").write_text(OWNLAB)
    for name, text in CONF.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ownlab", raising=False)
    monkeypatch.setenv(VARIABLE, "otherlab,ownlab")
    yield tmp_path
    sys.modules.pop("ownlab", None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, whose console and requests can be read; of tests marked `browser`."""
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and driver, "expected chromium and chromium-driver (Debian's names) to be installed"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,1200",
        "--disable-background-networking",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()

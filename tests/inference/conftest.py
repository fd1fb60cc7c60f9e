"""The command that a test file is about, as a user calls it."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests import fakes
from tests.inference.tiny import PALETTE, files, make_checkpoint


@pytest.fixture
def tool(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """Give `tool(*words)`: the exit code of the file's `COMMAND`, called in this process and in a folder `cwd`."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def called(*words: str) -> int:
        GlobalHydra.instance().clear()
        code: int = request.module.COMMAND(words)
        return code

    yield called
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give `refused(*words)`: the one line on stderr of a call that fails; it leaves the folder as it was."""

    def called(*words: str, code: int = 2) -> str:
        before = files(Path())
        capsys.readouterr()  # of calls before
        assert tool(*words) == code
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert out == "" and line.startswith("error: ")
        assert files(Path()) == before
        return line

    return called


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "own.safetensors"
    return make_checkpoint(path, 3, data="folder", classes=["sky", "ground", "sea"])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's folder: five pictures of different sizes in val; test has no labels."""
    root = fakes.make_fake_folder(tmp_path_factory.mktemp("photos"), n=5, test=True)
    for path in (root / "masks" / "test").iterdir():
        path.unlink()
    return root


@pytest.fixture
def own(photos: Path) -> list[str]:
    """Return the words for that folder."""
    return ["data=folder", f"data.root={photos}", "data.classes=[sky,ground,sea]", "data.num_workers=0"]


@pytest.fixture(scope="session")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "city.safetensors", 19, data="cityscapes")


@pytest.fixture(scope="session")
def own_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = [f"thing {i}" for i in range(7)]
    path = tmp_path_factory.mktemp("model") / "own.safetensors"
    return make_checkpoint(path, 7, data="folder", classes=classes, palette=PALETTE)

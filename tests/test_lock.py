"""The lock: constraints.txt, and constraints-more.txt beside it, on every system and Python that we name."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.pylock import PackageWheel, Pylock
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = ("constraints.txt",)
ALL = (*INSTALLED, "constraints-more.txt")
MORE = {"docs", "demo"}
BUILT = {"antlr4-python3-runtime"}  # pure Python without a wheel

# sys_platform, platform_machine, uv's name of the platform, the names of what its wheels may ask for at most
SYSTEMS = {
    "linux-x86_64": ("linux", "x86_64", "x86_64-manylinux_2_28"),
    "linux-arm64": ("linux", "aarch64", "aarch64-manylinux_2_28"),
    "macos-arm64": ("darwin", "arm64", "aarch64-apple-darwin"),
}
PAIRS = [(system, minor) for system in SYSTEMS for minor in (11, 12, 13)]
every_pair = pytest.mark.parametrize(("system", "minor"), PAIRS, ids=lambda value: str(value))

Pins = dict[str, tuple[Requirement, set[str]]]


@cache
def lines(*files: str) -> list[tuple[Requirement, set[str]]]:
    """Return each pin of the lock with its hashes."""
    found = []
    for line in "".join((ROOT / file).read_text() for file in files).replace("\\\n", " ").splitlines():
        pin, *hashes = line.split("--hash=sha256:")
        found.append((Requirement(pin), {value.strip() for value in hashes}))
    return found


def environment(system: str, minor: int) -> dict[str, str]:
    """Return the values that a marker has there."""
    sys_platform, machine, _ = SYSTEMS[system]
    return {
        "implementation_name": "cpython",
        "implementation_version": f"3.{minor}.9",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": sys_platform.capitalize(),
        "platform_version": "",
        "python_full_version": f"3.{minor}.9",
        "python_version": f"3.{minor}",
        "sys_platform": sys_platform,
    }


def holds(requirement: Requirement, there: dict[str, str], extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**there, "extra": extra})


def selected(there: dict[str, str], *files: str) -> Pins:
    """Return what is installed there: one version of a package, or the lock contradicts itself."""
    pins: Pins = {}
    for pin, hashes in lines(*files):
        if holds(pin, there):
            known = pins.setdefault(canonicalize_name(pin.name), (pin, hashes))
            assert (known[0].specifier, known[1]) == (pin.specifier, hashes)
    return pins


def direct(more: bool) -> list[Requirement]:
    """Return what pyproject.toml asks for, with or without what `make install` leaves out."""
    extras = PROJECT["optional-dependencies"]
    chosen = [r for extra, wanted in extras.items() if more or extra not in MORE for r in wanted]
    return [Requirement(r) for r in (*PROJECT["dependencies"], *chosen, "hatchling")]


@pytest.mark.parametrize("file", ALL)
def test_every_line_pins_one_version_and_has_hashes(file: str) -> None:
    for pin, hashes in lines(file):
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
        assert hashes and all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes), pin
        assert pin.name != "albumentationsx", "AGPL"


@every_pair
@pytest.mark.parametrize("more", [False, True])
def test_the_lock_pins_every_direct_dependency_within_its_bounds(system: str, minor: int, more: bool) -> None:
    pins = selected(environment(system, minor), *(ALL if more else INSTALLED))
    for requirement in direct(more):
        (pinned,) = pins[canonicalize_name(requirement.name)][0].specifier
        assert requirement.specifier.contains(pinned.version), requirement


@every_pair
def test_cuda_is_for_linux_alone(system: str, minor: int) -> None:
    pins = selected(environment(system, minor), *ALL)
    cuda = {name for name in pins if re.match(r"(nvidia|cuda)-|triton$", name)}
    assert cuda >= {"triton", "nvidia-cudnn-cu13", "cuda-bindings"} if "linux" in system else not cuda
    assert {"torch", "torchvision"} <= pins.keys()


@every_pair
def test_what_is_installed_needs_nothing_that_is_not(system: str, minor: int) -> None:
    """From the metadata of the packages installed here, which name what they need on other systems too."""
    there = environment(system, minor)
    pins = selected(there, *INSTALLED)
    waiting, seen = direct(more=False), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in pins, requirement
        (pinned,) = pins[name][0].specifier
        assert requirement.specifier.contains(pinned.version, prereleases=True), requirement
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            waiting += [r for r in requires(name, pinned.version) if holds(r, there, extra)]
    assert {name for name, _ in seen} == pins.keys()


@cache
def requires(name: str, version: str) -> list[Requirement]:
    """Return what an installed package of that version asks for; nothing of a package for another system."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Requirement(r) for r in found.requires or []] if found.version == version else []


def test_peers_are_compared_on_the_torch_of_the_lock() -> None:
    pins = selected(environment("linux-x86_64", 11), *INSTALLED)
    named = re.findall(r" (torch|torchvision)==(\S+)", (ROOT / "Makefile").read_text())
    assert len(named) == 2 and all(str(pins[name][0].specifier) == f"=={version}" for name, version in named)


def uv(*arguments: object, **variables: str) -> None:
    """Ask the index."""
    tool = shutil.which("uv")
    assert tool, "install uv, for example by `pip install uv`"
    command = [tool, *map(str, arguments), "--no-python-downloads"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Pylock:
    """Return all files that the index has of the locked versions."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "pins.in").write_text("\n".join(str(pin) for pin, _ in lines(*ALL)))
    options = ("--no-deps", "--universal", "--python-version", "3.11.4", "--format", "pylock.toml")
    uv("pip", "compile", folder / "pins.in", *options, "-o", folder / "pylock.toml")
    return Pylock.from_dict(tomllib.loads((folder / "pylock.toml").read_text()))


def tags(system: str, minor: int) -> list[Tag]:
    """Return which wheels can be installed there, with macOS 14 or glibc 2.28."""
    sys_platform, machine, _ = SYSTEMS[system]
    if sys_platform == "darwin":
        platforms = list(mac_platforms((14, 0), machine))
    else:
        platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in range(28, 4, -1)]
        platforms += [f"manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
    python, interpreter = (3, minor), f"cp3{minor}"
    return [
        *cpython_tags(python, abis=[interpreter], platforms=platforms),
        *compatible_tags(python, interpreter, platforms),
    ]


@pytest.mark.lock
@every_pair
def test_the_lock_has_the_hash_of_the_wheel_that_is_installed(index: Pylock, system: str, minor: int) -> None:
    there = environment(system, minor)
    pins = selected(there, *ALL)
    chosen = list(index.select(environment=there, tags=tags(system, minor)))  # type: ignore[arg-type]
    assert {package.name for package, _ in chosen} == pins.keys()
    for package, file in chosen:
        assert isinstance(file, PackageWheel) or package.name in BUILT, package.name
        assert file.hashes["sha256"] in pins[package.name][1], f"{package.name}: {file}"


@pytest.mark.lock
@every_pair
def test_the_lock_is_complete(tmp_path: Path, system: str, minor: int) -> None:
    """From the metadata of the wheels of that system; nothing is downloaded."""
    options = ["--only-binary", ":all:", *(word for name in BUILT for word in ("--no-binary", name))]
    options += ["--python-platform", SYSTEMS[system][2], "--python-version", f"3.{minor}"]
    options += [word for file in ALL for word in ("-r", file)]
    uv(
        "pip", "install", "--dry-run", "--require-hashes", "--target", tmp_path, *options,
        MACOSX_DEPLOYMENT_TARGET="14.0",
    )  # fmt: skip

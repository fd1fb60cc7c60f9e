"""The project's own promises: versions, make targets, documents that tell the truth."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import command as benchmark
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from packaging.requirements import Requirement

import isaseg
from isaseg import config
from isaseg.cli import compare
from isaseg.config.checks import check
from isaseg.sweep.grid import combinations

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = {"help", "install", "train", "test", "lint", "sweep", "ablation", "figures", "peers", "clean"}
TARGETS |= {"compare", "test-browser", "test-slurm", "test-stress", "test-lock", "notebooks"}
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
DOCUMENTS += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))

RUN_TIME = [Requirement(r) for r in PROJECT["project"]["dependencies"]]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run in the root as if from a fresh shell, although `make test` may be what runs us."""
    ours = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "ARGS", "PYTHON")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.5.1"),  # CVE-2025-32434
        ("torch", "2.9.1"),  # CVE-2026-24747
        ("lightning", "2.6.2"),  # GHSA-w37p-236h-pfx3
        ("lightning", "2.6.3"),
        ("hydra-core", "1.3.7"),
        ("omegaconf", "2.4.0"),
        ("timm", "1.0.20"),
    ],
)
def test_c8_x4_versions_known_to_be_bad_are_refused(name: str, version: str) -> None:
    (requirement,) = [r for r in RUN_TIME if r.name == name]
    assert not requirement.specifier.contains(version, prereleases=True)


def test_make_help_lists_every_target_with_its_purpose() -> None:
    shown = run("make", "--no-print-directory", "help")
    assert shown.returncode == 0, shown.stderr
    purposes = dict(re.findall(r"^  make (\S+) +(\S.*)$", shown.stdout, flags=re.MULTILINE))
    assert purposes.keys() >= TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert purposes.keys() == set(phony.split())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_can_be_made(target: str) -> None:
    planned = run("make", "--no-print-directory", "-n", target)
    assert planned.returncode == 0, planned.stderr
    scripts = re.findall(r"\bsrc/\w+\.py", planned.stdout)
    assert all((ROOT / script).is_file() for script in scripts)
    assert target not in ("train", "sweep", "ablation", "figures") or scripts


@pytest.mark.parametrize("target", ["clean", "clean-all"])
def test_only_clean_all_removes_results(target: str) -> None:
    removed = run("make", "--no-print-directory", "-n", target).stdout
    assert ("outputs" in removed) == (".venv" in removed) == (target == "clean-all")


# python, which makes an environment, and what installs into it: uv, or pip of that environment's python
INSTALLER = """#!/bin/sh
case "$1 $2" in
  "-c "*) ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$@" >> calls; test -e works || { touch .venv/half; exit 1; } ;;
esac
"""


@pytest.mark.parametrize("uv", ["./tool", ""])
@pytest.mark.parametrize("torch", ["", "cpu"])
def test_an_interrupted_installation_begins_again(tmp_path: Path, uv: str, torch: str) -> None:
    def install() -> list[str]:
        (tmp_path / "calls").write_text("")
        made = run("make", "-C", str(tmp_path), "install", "PYTHON=./tool", f"UV={uv}", f"TORCH={torch}")
        assert (made.returncode == 0) == (tmp_path / ".venv" / ".installed").exists(), made.stderr
        return (tmp_path / "calls").read_text().splitlines()

    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tool").write_text(INSTALLER)
    (tmp_path / "tool").chmod(0o755)
    assert len(install()) == 1 and (tmp_path / ".venv" / "half").exists()
    (tmp_path / "works").touch()
    *first, packages, ours = install()
    assert not (tmp_path / ".venv" / "half").exists()
    assert all(call.startswith("pip install" if uv else "-m pip install") for call in (packages, ours))
    assert "--require-hashes" in packages and ours.endswith("-e .")
    assert [call.split()[-2:] for call in first] == (
        [["torch==2.14.1", "torchvision==0.29.1"]] if torch else []
    )
    lock = (tmp_path / packages.split()[-1]).read_text()
    left_out = set(re.findall(r"^[\w-]+", (ROOT / "constraints.txt").read_text(), re.M)) - set(
        re.findall(r"^[\w-]+", lock, re.M)
    )
    assert ({"torch", "torchvision", "triton", "cuda-bindings", "nvidia-nccl-cu13"} <= left_out) == bool(
        torch
    )
    assert all(re.match(r"torch(vision)?$|triton$|(nvidia|cuda)-", name) for name in left_out)
    assert install() == []
    os.utime(tmp_path / "pyproject.toml")
    assert install() == [ours]  # the packages stay


def test_the_package_imports_without_torch() -> None:
    """A typo on the command line is reported at once, not after the seconds that torch takes."""
    code = "import sys, isaseg.config; print(*{'torch', 'lightning', 'timm'} & set(sys.modules))"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_version_is_stated_once_and_the_same() -> None:
    version = PROJECT["project"]["version"]
    assert isaseg.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"\bshell\s*=\s*True\b", set()),
        (r"\bos\.(system|popen)\b", set()),
        (r"(?<![.\w])(eval|exec)\(", set()),
        (r"\bweights_only\s*=\s*False\b", set()),
        (r"\btorch\.hub\b", set()),
        (
            r"^\s*(import|from) (urllib|requests|httpx|socket)\b",
            {"demo.py"},
        ),  # which asks whether its port is free
        (r"\bextractall\b", set()),
        (r"^\s*(import|from) tarfile\b", {"unpack.py"}),
    ],
)
def test_no_source_opens_a_known_door(pattern: str, allowed: set[str]) -> None:
    """Nor loads unsafely: that is `test_checkpoint.py`."""
    door = re.compile(pattern, re.MULTILINE)
    assert {p.name for p in (ROOT / "src").rglob("*.py") if door.search(p.read_text())} == allowed


def test_nothing_names_a_folder_of_somebodys_machine() -> None:
    folders = re.compile(r"(?<![\w.:/])(/(home|root|work|Users|opt|mnt|scratch)/|~/|[A-Z]:\\)")
    files = [p for folder in ("src", "conf", ".ci", ".github") for p in (ROOT / folder).rglob("*")]
    files += [ROOT / name for name in (*DOCUMENTS, "Makefile", "pyproject.toml", ".pre-commit-config.yaml")]
    text = [p for p in files if p.is_file() and p.suffix in ("", ".py", ".yaml", ".yml", ".md", ".toml")]
    assert len(text) > 60
    assert [str(p) for p in text if folders.search(p.read_text())] == []


def commands(start: str) -> list[str]:
    """Return what the documents tell the reader to type, without the comments."""
    lines: list[str] = []
    for name in DOCUMENTS:
        text, language = (ROOT / name).read_text().replace("\\\n", " "), None
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in map(str.strip, text.splitlines()):
            if line.startswith("```"):
                language = line[3:] if language is None else None
            elif language in ("", "bash"):
                lines.append(line.removeprefix("srun "))
        assert language is None, f"{name}: a block of code does not end"
    return sorted({line.split(" #")[0].strip() for line in lines if line.startswith(start)})


def test_the_commands_of_the_documents_are_found() -> None:
    """A fence that is paired wrongly would leave the tests below with hardly any cases."""
    least = {"train": 40, "evaluate": 8, "predict": 5, "export": 3, "demo": 2, "data": 6, "compare": 4}
    assert not [name for name, count in least.items() if len(commands(f"python src/{name}.py")) < count]


def test_documented_make_targets_exist() -> None:
    named = {command.split()[1] for command in commands("make ")}
    assert named >= {"train", "test", "ablation", "lint", "lock"}
    assert not [target for target in named if run("make", "-n", target).returncode]


OWN = "--config-dir myconf"  # the command of a reader's own module; test_examples.py executes it


@pytest.mark.parametrize("command", [c for c in commands("python src/train.py") if OWN not in c])
def test_documented_training_commands_compose(command: str, compose: Callable[..., DictConfig]) -> None:
    arguments = [a for a in shlex.split(command)[2:] if a not in ("-m", "--help")]
    root = [] if "data.root" in command else ["data.root=somewhere"]
    for job in combinations({}, arguments):
        check(compose(*job, *root))


@pytest.mark.parametrize(
    ("name", "root", "command"),
    [
        (name, root, command)
        for name, root in [(n, n) for n in ("evaluate", "predict", "export", "dashboard", "demo")]
        + [("data", "data_tool")]
        for command in commands(f"python src/{name}.py")
    ],
)
def test_documented_commands_compose(name: str, root: str, command: str) -> None:
    words = shlex.split(command)[2:]
    assert name != "data" or words.pop(0) in ("check", "prepare", "cache")
    GlobalHydra.instance().clear()
    config.compose_from(root, words)


@pytest.mark.parametrize("name", ["benchmark", "compare"])
def test_documented_options_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = benchmark._parser() if name == "benchmark" else compare._parser()
    found = [command.split()[2:] for command in commands(f"python src/{name}.py")]
    assert found
    for words in found:
        which = words[:1] if name == "benchmark" else []
        with pytest.raises(SystemExit):
            parser.parse_args([*which, "--help"])
        shown = capsys.readouterr().out
        assert shown and all(word in shown for word in words if word.startswith("-"))


def test_documented_extras_exist() -> None:
    text = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)
    named = {extra for found in re.findall(r"isaseg\[([\w,]+)\]", text) for extra in found.split(",")}
    assert named and named <= set(PROJECT["project"]["optional-dependencies"])


def test_documented_attention_choices_are_all_there_are() -> None:
    (named,) = re.findall(r"`attention=` is one of\s(.+?)\.\n", readme(), flags=re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) == {p.stem for p in (ROOT / "conf/attention").glob("*.yaml")}


@pytest.mark.parametrize("document", ["README.md", "docs/index.md"])
def test_the_first_pages_python_runs(document: str) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, document, "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_exist(document: str) -> None:
    text, folder = (ROOT / document).read_text(), (ROOT / document).parent
    links = [folder / link for link in re.findall(r"\]\(([^)#]+)[)#]", text) if "://" not in link]
    paths = [
        ROOT / path for path in re.findall(r"`((?:src|conf|tests|docs|benchmarks|\.ci)/[\w./-]+)`", text)
    ]
    assert [str(path) for path in (*links, *paths) if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_headings_that_documents_link_to_exist(document: str) -> None:
    """On GitHub and on the site, which make the same anchors of these headings."""
    path = ROOT / document
    for name, anchor in re.findall(r"\]\(([^):]*)#([^)]+)\)", path.read_text()):
        target = path.parent / name if name else path
        headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, name


def test_every_page_is_in_the_sites_navigation() -> None:
    nav = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(nav) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


def readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 443)])
def test_tests_reach_no_network(address: tuple[str, int]) -> None:
    for connect in (socket.socket.connect, socket.socket.connect_ex):
        with socket.socket() as client, pytest.raises(OSError, match="tests reach no network"):
            connect(client, address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()

"""The command `isaseg`: from the checkout, and from a wheel alone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from isaseg.cli import __main__ as isaseg
from isaseg.cli import command

ROOT = Path(__file__).parents[2]

# What pip writes into the script `isaseg`
SCRIPT = """
import sys
from importlib.metadata import entry_points
(found,) = entry_points(group="console_scripts", name="isaseg")
sys.exit(found.load()())
"""

SHORT = ["backbone=tiny_d8", "data.crop_size=[32,32]", "data.val_length=2", "head.channels=16", "logger=csv"]
SHORT += ["head.aux_channels=8", "trainer.accelerator=cpu", "pictures=0", "output_dir=out"]


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_its_help_lists_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert isaseg.main(words) == (0 if words else 2)
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert tuple(shown) == isaseg.COMMANDS
    assert all(text.endswith(".") for text in shown.values())


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert isaseg.main(["evaluat", "checkpoint=x"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "got 'evaluat'; did you mean 'evaluate'?" in shown.err


@pytest.mark.parametrize("name", isaseg.COMMANDS)
def test_each_command_is_a_script_too_and_helps(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ROOT / "src" / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 10
    for typed, program in ((f"src/{name}.py", f"python src/{name}.py"), ("bin/isaseg", f"isaseg {name}")):
        monkeypatch.setattr(sys, "argv", [typed, "--help"])
        try:
            code = isaseg.main([name, "--help"])
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
        shown = capsys.readouterr().out
        assert code == 0 and shown.startswith(f"usage: {program} ")
        assert shown.count(program) > 1, "the examples too"


@pytest.mark.parametrize("words", [["-h"], ["a=b", "--help"]])
def test_help_is_asked_for_before_two_dashes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = "A summary.\n\nusage: isaseg x\n\nThe rest.\n"
    assert command.main(text, lambda given: 5, words, "") == 0
    assert capsys.readouterr().out == "usage: isaseg x\n\nA summary.\n\nThe rest.\n"
    assert command.main(text, lambda given: len(given), ["--", *words], "") == 1 + len(words)


# Forks each command from an interpreter that has Hydra and nothing of ours, and prints how each ended
FRESH = """
import json, os, sys
import hydra
answers = []
for number, (words, fails) in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        sys.path[:0] = fails
        from isaseg.cli.__main__ import main
        sys.exit(main(words))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answers.append([code, *(open(f"{number}.{stream}").read() for stream in (1, 2))])
print(json.dumps(answers))
"""


def test_a_typo_is_reported_before_slow_imports(tmp_path: Path) -> None:
    """Of `data check`, pydantic is none."""
    for slow in ("torch", "pydantic"):
        (tmp_path / slow).mkdir()
        (tmp_path / slow / f"{slow}.py").write_text(f"raise SystemExit('{slow} was imported')")
    names = ["train", "evaluate", "predict", "export", "dashboard", "demo", "data check"]
    fails = [["torch"] if name == "data check" else ["torch", "pydantic"] for name in names]
    asked = json.dumps([([*n.split(), "outputt=x"], f) for n, f in zip(names, fails, strict=True)])
    line = [sys.executable, "-c", FRESH, asked]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    for name, (code, out, err) in zip(names, json.loads(done.stdout), strict=True):
        assert (code, out) == (2, ""), (name, err)
        assert err.startswith("error: no configuration key 'outputt'; "), name
        assert err.count("\n") == 1, name


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that holds the wheel and its dependencies, but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True, timeout=120)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]  # whose .pth files are not read
    (site / "wheel.pth").write_text("\n".join([str(folder / "unpacked"), *packages]))
    return folder / "env" / "bin" / "python"


def test_a_wheel_trains_and_sweeps_in_any_folder(installed: Path, tmp_path: Path) -> None:
    """The job of a sweep is a training by command."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        words = (str(installed), *words)
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    where = run("-c", "import isaseg, isaseg.config as c; print(isaseg.__file__, c.conf_dir(), sep='\\n')")
    package = installed.parents[2] / "unpacked" / "isaseg"
    assert where.stdout.split() == [str(package / "__init__.py"), str(package / "conf")], where.stderr
    done = run("-c", SCRIPT, "train", "-m", "seed=0", "trainer.max_steps=5", *SHORT)
    assert done.returncode == 0, done.stderr
    (score,) = tmp_path.glob("out/lamps_isa/*/metrics.json")
    assert json.loads(score.read_text())["step"] == 5

"""A result is that of a code and of files: what is said when these are others now, by command."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console

from isaseg.config import compose_from
from isaseg.errors import ConfigError, DataError
from isaseg.runs import stale
from isaseg.runs.run_folder import finished_run, report_if_complete
from isaseg.sweep.supervise import supervise
from isaseg.training.run import train
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL
from tests.sweep.fake import jobs_of

TWO = [*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=2", "data.num_workers=0"]


def pictures(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (40, 56, 3)), ("masks", (40, 56))):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            for name in "abc":
                pixels = rng.integers(0, 256 if kind == "images" else 2, shape, np.uint8)
                Image.fromarray(pixels).save(root / kind / split / f"{name}.png")
    return root


def test_the_same_command_after_an_edit_or_with_other_files(
    ownlab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line of a context module is edited; files are touched, added and removed; the folder is not there."""
    root = pictures(ownlab / "data")
    words = [*TWO, "data=folder", "experiment=lamps_isa", f"data.root={root}", "data.classes=[a,b]"]
    words += ["loss.class_weights=null", "--config-dir=conf", "attention=gate", "run_dir=run"]

    def run(*more: str) -> tuple[int, str]:
        done = forked.run("train.py", *words, *more, cwd=ownlab)
        return done.returncode, done.stderr

    def asked(choice: str = "warn") -> str:
        caplog.clear()
        with caplog.at_level("INFO"):
            assert report_if_complete(compose_from("train", [*words, f"stale={choice}"])) is not None
        return caplog.text

    code, said = run()
    assert code == 0 and "stale" not in said, said
    facts = json.loads(Path("run/facts.json").read_text())
    assert {"isaseg", "ownlab"} <= facts["code"].keys()
    sizes = sum(path.stat().st_size for path in root.glob("*/val/*"))
    assert {k: facts["files"]["val"][k] for k in ("count", "bytes")} == {"count": 6, "bytes": sizes}
    assert "is complete" in asked("refuse")

    module, last = Path("ownlab.py"), Path("run/checkpoints/last.ckpt")
    first = last.stat().st_mtime_ns
    module.write_text(module.read_text().replace("self.gain * self.point(x)", "self.point(x) * self.gain"))
    code, said = run()
    assert code == 0 and "is complete" in said, said
    (line,) = [line for line in said.splitlines() if "stale" in line]
    assert "other code of ownlab" in line and "stale=retrain" in line
    with pytest.raises(ConfigError, match="expected run to match the current code and files, got"):
        asked("refuse")
    assert last.stat().st_mtime_ns == first
    code, said = run("stale=retrain")
    assert code == 0 and "trained again" in said and "continues" not in said, said
    assert last.stat().st_mtime_ns > first
    assert "stale" not in asked("refuse")

    os.utime(root / "images/val/a.png", ns=(1, 1))
    assert "other files of val (as many, 6 files" in asked()
    for kind in ("images", "masks"):
        shutil.copy(root / kind / "train/a.png", root / kind / "train/d.png")
    assert "other files of train (6 files, now 8; " in asked()
    (root / "images/val").rename(ownlab / "aside")
    code, said = run()
    assert code == 2 and "got fewer: the split val" in said and "is complete" not in said
    assert "Traceback" not in said
    assert not Path("run/failed.txt").exists(), "the run is complete all the same"
    with pytest.raises(DataError, match="got 0 of 3 pairs"):
        train(compose_from("train", [*words, "stale=retrain"]))
    assert Path("run/metrics.json").exists(), "training refuses, and the result is kept"
    shutil.rmtree(root)
    for choice in ("warn", "refuse"):
        with pytest.raises(DataError, match=f"got data.root='{root}'.*run/metrics.json"):
            asked(choice)


def test_of_the_package_what_training_can_import_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(stale._PACKAGE, tmp_path / "isaseg")
    before = stale.code_digests()
    monkeypatch.setattr(stale, "_PACKAGE", copy)
    assert stale.code_digests(["no_such_package"]) == before, "a package that is not found is no error"
    for path in ("cli/train.py", "report/page.py"):
        (copy / path).write_text("edited")
    assert stale.code_digests() == before
    for path in ("models/interlaced.py", "data/classes/camvid.json"):
        (copy / path).write_text("edited")
        assert stale.code_digests() != before
        before = stale.code_digests()
    layers = (forked.ROOT / "pyproject.toml").read_text().partition("isaseg.training")[0]
    assert all(f'"isaseg.{room}"' in layers for room in stale._AFTER), "training imports none of them"


def complete(cfg: DictConfig) -> Path:
    """What a complete run leaves, without training."""
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    (folder / "facts.json").write_text(json.dumps(stale.origin(cfg)))
    (folder / "metrics.json").write_text(json.dumps({"val/mIoU": 0.5, "step": 2}))
    return folder


def test_a_sweep_says_which_complete_runs_are_stale(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    jobs = jobs_of(tmp_path, range(8), *TWO)
    for job in jobs:
        folder = complete(job.cfg)
        if job is not jobs[0]:
            facts = json.loads((folder / "facts.json").read_text())
            facts["code"]["isaseg"] = "0123abcd"
            (folder / "facts.json").write_text(json.dumps(facts))
    runner: Any = SimpleNamespace(interrupt=lambda running: None)
    assert {outcome.state for outcome in supervise(jobs, runner, console).values()} == {"finished"}
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "8 of 8 runs are complete already" in said
    assert said.count("other code of isaseg (0123abcd") == 5 and "2 others are stale too" in said
    for choice in ("refuse", "retrain"):  # a process does either
        for job in jobs[:2]:
            job.cfg.stale = choice
        found = [finished_run(job.cfg, job.folder) for job in jobs[:2]]
        assert [run is not None and run.kept for run in found] == [True, False]


def test_a_run_of_an_older_version_is_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = compose_overrides(*TWO, "stale=refuse", f"run_dir={tmp_path}/run")
    folder = complete(cfg)
    for text in ("{}", "not JSON"):
        (folder / "facts.json").write_text(text)
        assert report_if_complete(cfg) is not None
    assert "stale" not in caplog.text


def test_complete_is_said_without_torch(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    words = [*TWO, "data=folder", "experiment=lamps_isa", f"data.root={root}", "data.classes=[a,b]"]
    words += ["loss.class_weights=null", f"run_dir={tmp_path}/run", "stale=refuse"]
    complete(compose_overrides(*words))
    code = "import sys; from isaseg.cli.train import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["0", "False"], done.stderr


def test_a_run_that_goes_on_with_other_code_is_of_both() -> None:
    before = {"code": {"isaseg": "a", "mylab": "x"}, "files": {"val": {"count": 2, "digest": "m"}}}
    now = {"code": {"isaseg": "b", "mylab": "x"}, "files": {"val": {"count": 3, "digest": "n"}}}
    mixed = {"code": {"isaseg": "a+b", "mylab": "x"}, "files": {"val": {"count": 3, "digest": "m+n"}}}
    assert stale.continued(now, before) == stale.continued(now, mixed) == mixed
    assert stale.continued(now, {}) == stale.continued(now, now) == now

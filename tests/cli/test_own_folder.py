"""A package and a folder of configuration of the user's own: `+trust=[mylab] --config-dir DIR`."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.sweep.jobs import command
from isaseg.trust import VARIABLE
from tests import forked
from tests.sweep.fake import jobs_of

EVIL = "# @package _global_\nname: evil\n"
OWN = {
    "ownlab.py": "open('ran', 'w').close()\n",
    "own/attention/ours.yaml": "_target_: ownlab.Ours\n_partial_: true\nrank: 4\n",
    "own/data/ours.yaml": "defaults: [lamps]\nname: ours\n",
    "own/experiment/key.yaml": f"{EVIL}trust: [ownlab]\nattention: {{_target_: ownlab.Mine}}\n",
    "own/experiment/environment.yaml": f"{EVIL}hydra: {{job: {{env_set: {{{VARIABLE}: ownlab}}}}}}\n",
    "own/sweep/evil.yaml": f"{EVIL}hydra: {{sweeper: {{params: {{+trust: ownlab, seed: '0,1'}}}}}}\n",
    "own/sweep/rows.yaml": f"{EVIL}hydra: {{sweeper: {{rows: [seed=1 trust=ownlab]}}}}\n",
    "own/sweep/setup.yaml": f"""{EVIL}defaults: [{{override /hydra/launcher: slurm}}]
hydra: {{launcher: {{setup: [export {VARIABLE}=ownlab]}}, sweeper: {{params: {{seed: "0,1"}}}}}}
""",
    "own/trust/ownlab.yaml": EVIL,  # so that the word of the sweep leaves no key
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a package and a folder of configuration."""
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=key"],
        ["experiment=environment"],
        ["-m", "sweep=evil"],
        ["-m", "sweep=rows"],
        ["-m", "sweep=setup"],
    ],
    ids=lambda words: words[-1],
)
def test_no_file_gives_trust(words: list[str], own: Path) -> None:
    """Refused by the command, before any job of a sweep starts, and with nothing made."""
    done = forked.run("train.py", "--config-dir", "own", *words, "output_dir=out", cwd=own)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: expected no trust from a file, got "), done.stderr
    assert done.stderr.count("\n") == 1
    assert not [path for path in (own / "out").rglob("*") if not path.is_dir()]
    assert not (own / "ran").exists()


def test_every_command_finds_the_options_of_a_folder(own: Path) -> None:
    for name in ("evaluate", "predict", "data_tool"):
        assert config.compose_from(name, ["data=ours", "--config-dir=own"]).data.name == "ours"
    with pytest.raises(ConfigError, match=r"did you mean 'ours'\? options: .*lamps"):
        config.compose_from("evaluate", ["data=oours", "--config-dir=own"])
    with pytest.raises(ConfigError, match=r"'attention\.rnk'; did you mean 'attention\.rank'"):
        config.compose_from("train", ["attention=ours", "attention.rnk=3", "--config-dir=own"])
    with pytest.raises(ConfigError, match="a folder as --config-dir, got 'none'"):
        config.compose_from("evaluate", ["--config-dir=none"])
    with pytest.raises(ConfigError, match="no trust from a file"):
        config.compose_from("train", ["experiment=key", "--config-dir=own"])
    done = forked.run(
        "train.py", "callbacks=null", "attention.rnk=3", "-m", "-cd", "own", "attention=ours", cwd=own
    )
    assert done.returncode == 2 and "did you mean 'attention.rank'" in done.stderr
    done = forked.run("data.py", "check", "-cd", "own", "+trust=[ownlab]", "data=ours", cwd=own)
    assert "got data=ours, which is generated" in done.stderr


def test_yaml_that_cannot_be_read_is_one_sentence(own: Path) -> None:
    (own / "own" / "attention" / "broken.yaml").write_text("_target_: ownlab.Gate\n\tgain: 1\n")
    with pytest.raises(ConfigError, match=r"expected YAML that can be read: .*broken.yaml\", line 2"):
        config.compose_from("train", ["attention=broken", "--config-dir=own"])
    done = forked.run("train.py", "-cd", "own", "attention=broken", cwd=own)
    assert done.returncode == 2 and "broken.yaml" in done.stderr and done.stderr.count("\n") == 1


def test_the_jobs_of_a_sweep_have_both(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As words: Slurm may pass no environment."""
    monkeypatch.setenv(VARIABLE, "ownlab,otherlab")
    (job,) = jobs_of(own, [1])
    assert "+trust=[ownlab,otherlab]" in command(job)
    sources = [
        {"provider": "main", "path": "a"},
        {"provider": "command-line", "path": os.path.abspath("own")},
    ]
    hydra = {"runtime": {"config_sources": sources}, "job": {"config_name": "train"}}
    assert config.command_flags(OmegaConf.create(hydra)) == [f"--config-dir={own}/own"]

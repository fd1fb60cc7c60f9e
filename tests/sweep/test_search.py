"""A search is one study, however often its process dies: no trial lost, none repeated, none that fails stops it."""

import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from isaseg import config
from isaseg.errors import ConfigError, SweepError
from isaseg.runs.run_folder import failure
from isaseg.sweep.jobs import Job
from isaseg.sweep.local import alone
from isaseg.sweep.search import search
from isaseg.sweep.space import overrides, parse, samples
from isaseg.sweep.study import Settings
from isaseg.sweep.supervise import Outcome, ShouldStop
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import STRESS
from tests.sweep.fake import TINY, until

SPACE = ["optim.lr=tag(log,interval(1e-4,1e-1))", "attention.group_size=[4,4],[8,8]"]


@pytest.fixture(scope="module")
def base() -> DictConfig:
    return compose_overrides("trainer.max_steps=5", "trainer.val_check_interval=1")


class Bench:
    """Stands for Hydra and the processes: composes from one configuration, and 'trains' at once."""

    def __init__(self, base: DictConfig, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.launched: list[list[str]] = []
        self.slots: int | None = 1
        self.curve: Callable[[DictConfig], Sequence[float]] = lambda cfg: [1 - cfg.optim.lr]
        self.at: dict[int, Outcome | KeyboardInterrupt] = {}  # what befalls the launch of that count

    def cfg(self, words: Sequence[str]) -> DictConfig:
        cfg = self.base.copy()
        cfg.output_dir = str(self.folder)
        cfg.merge_with_dotlist(list(words))
        return cfg

    def plan_of(self, combinations: Sequence[Sequence[str]]) -> list[Job]:
        cfgs = [self.cfg(words) for words in combinations]
        return [Job("", config.run_dir(c), tuple(w), c) for c, w in zip(cfgs, combinations, strict=True)]

    def run(
        self, combinations: Sequence[Sequence[str]], should_stop: ShouldStop | None
    ) -> list[tuple[Job, Outcome]]:
        self.launched += map(list, combinations)
        event = self.at.pop(len(self.launched), None)
        if isinstance(event, KeyboardInterrupt):
            raise event
        return [(job, self.train(job, event, should_stop)) for job in self.plan_of(combinations)]

    def train(self, job: Job, event: Outcome | None, should_stop: ShouldStop | None) -> Outcome:
        job.folder.mkdir(parents=True, exist_ok=True)
        if job.cfg.attention.group_size[0] == 0:
            return Outcome("failed", message="no such partition")
        curve = self.curve(job.cfg)
        for step in range(1, len(curve) + 1):
            rows = [f"{i},{v},0.5" for i, v in enumerate(curve[:step], 1)]
            (job.folder / "metrics.csv").write_text("\n".join(["step,val/mIoU,train/loss", *rows]) + "\n")
            if event is None and should_stop is not None and should_stop(job):
                return Outcome("stopped")
        return event or Outcome("finished", {"val/mIoU": curve[-1]})

    def search(self, *arguments: str, **settings: object) -> optuna.Study:
        held = {"params": None, "n_trials": 4, "seed": 0}
        held |= {"n_startup_trials": 2, "pruner": "none", "n_warmup_steps": 0, **settings}
        checked = Settings(**held)  # type: ignore[arg-type]
        return search(self.run, self.slots, self.plan_of, checked, "s", arguments or SPACE)

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=None, storage=f"sqlite:///{self.folder}/lamps_isa/s.db")

    @property
    def states(self) -> str:
        """One letter a trial: Complete, Pruned, Failed, Running."""
        return "".join(trial.state.name[0] for trial in self.study.trials)


@pytest.fixture
def bench(base: DictConfig, tmp_path: Path) -> Bench:
    return Bench(base, tmp_path / "out")


# ---------------------------------------------------------------- what is searched


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1,8)", "FloatDistribution(high=8.0, log=False, low=1.0, step=None)"),
        ("tag(log,interval(1e-4,1e-2))", "FloatDistribution(high=0.01, log=True, low=0.0001, step=None)"),
        ("int(interval(1,8))", "IntDistribution(high=8, log=False, low=1, step=1)"),
        ("int(tag(log,interval(1,8)))", "IntDistribution(high=8, log=True, low=1, step=1)"),
        ("range(1,8,3)", "IntDistribution(high=7, log=False, low=1, step=3)"),
        ("range(4)", "IntDistribution(high=3, log=False, low=0, step=1)"),
        ("range(8,0,-4)", "IntDistribution(high=8, log=False, low=4, step=4)"),
        ("range(0.5,2,0.5)", "FloatDistribution(high=1.5, log=False, low=0.5, step=0.5)"),
        ("[4,4],[8,8]", "CategoricalDistribution(choices=('[4,4]', '[8,8]'))"),
        ("choice(isa,dense,isa)", "CategoricalDistribution(choices=('isa', 'dense'))"),
        ("'a b',null", "CategoricalDistribution(choices=(\"'a b'\", 'null'))"),
    ],
)
def test_hydras_words_for_what_is_swept(text: str, expected: str) -> None:
    # the command line replaces and adds to what a file searches
    params = {"a.b": "interval(5,6)", "c": "0,1"}
    space, fixed = parse(params, [f"a.b={text}", "c=1", "~d", "e=range(2)"])
    assert list(space) == ["a.b", "e"]
    assert str(space["a.b"]) == expected
    assert fixed == ["c=1", "~d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tag(log,interval(0,1))", "low"),
        ("interval(2,1)", "low"),
        ("interval(0,inf)", "finite"),
        ("range(3,3)", "empty"),
        ("tag(log,range(1,9,2))", "log"),
        ("tag(x,interval(0,1))", "no tag but log"),
        ("tag(log,choice(1,2,4))", "log needs numbers in an interval"),
        ("shuffle(1,2)", "draws in its own order"),
        ("1e-3", "sweep=search"),
    ],
)
def test_what_cannot_be_searched_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({}, [f"optim.lr={text}"])
    with pytest.raises(ConfigError, match="one file of conf/sweep, got sweep=search,order"):
        parse({}, ["sweep=search,order"])


def test_samples_hold_every_choice_and_both_ends_and_lose_no_digit() -> None:
    space, _ = parse({}, ["a=x,y,z", "b=interval(0.1,0.3)", "c=range(3)"])
    found = samples(space)
    assert [one["a"] for one in found] == ["x", "y", "z"]
    assert {one["b"] for one in found} == {0.1, 0.3}
    assert overrides({"a": "[4,4]", "b": 1 / 3, "c": 2}) == ["a=[4,4]", f"b={1 / 3!r}", "c=2"]


# ---------------------------------------------------------------- one study


def test_an_interrupted_search_draws_what_it_would_have_drawn(bench: Bench, tmp_path: Path) -> None:
    for wanted, launched in ((4, 4), (2, 4)):
        whole = bench.search(n_trials=wanted)
        assert len(bench.launched) == launched, "n_trials is that of the study"
    assert [trial.value for trial in whole.trials] == [
        pytest.approx(1 - trial.params["optim.lr"]) for trial in whole.trials
    ]
    cut = Bench(bench.base, tmp_path / "cut")
    cut.at = {2: KeyboardInterrupt(), 3: KeyboardInterrupt(), 6: KeyboardInterrupt()}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            cut.search(n_trials=4)
        assert cut.states.endswith("R")
    assert cut.search(n_trials=4).trials[3].params == whole.trials[3].params
    assert [trial.params for trial in cut.study.trials] == [trial.params for trial in whole.trials]
    assert cut.states == "C" * 4
    assert cut.launched[1] == cut.launched[2] == cut.launched[3], "the same run, with its values"
    assert len(cut.launched) == 4 + 3
    assert len({trial.params["optim.lr"] for trial in whole.trials}) == 4
    other = Bench(bench.base, tmp_path / "other")
    assert other.search(n_trials=2, seed=1).trials[0].params != whole.trials[0].params


@pytest.mark.parametrize("slots", [3, None])
def test_as_many_trials_together_as_there_is_room_for_and_all_go_on(
    slots: int | None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6")
    bench.base = bench.base.copy()
    bench.base.trainer.accelerator, bench.base.trainer.devices = "gpu", 2
    bench.slots, bench.at = slots, {3: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        bench.search(n_trials=4)
    assert bench.states == "RRR"
    bench.search(n_trials=4)
    assert bench.states == "CCCC"
    assert bench.launched[:3] == bench.launched[3:6]
    assert len({tuple(words) for words in bench.launched}) == 4


def test_a_process_killed_while_it_drew_values_loses_no_trial(bench: Bench) -> None:
    bench.search(n_trials=1)
    bench.study.ask()  # a trial without values
    study = bench.search(n_trials=2)
    assert bench.states == "CFC"
    assert study.trials[2].params.keys() == {"optim.lr", "attention.group_size"}


def test_other_values_or_other_runs_are_another_study(bench: Bench) -> None:
    first = bench.search(n_trials=1)
    assert bench.search(*SPACE, "data.num_workers=7", n_trials=2).study_name == first.study_name
    others = [bench.search("optim.lr=interval(0,0.2)", SPACE[1], n_trials=1)]
    others.append(bench.search(*SPACE, "trainer.max_steps=20", n_trials=1))
    bench.base = bench.base.copy()
    bench.base.optim.weight_decay = 0.5
    others.append(bench.search(n_trials=1))
    assert len({study.study_name for study in [first, *others]}) == 4
    assert [len(study.trials) for study in [first, *others]] == [2, 1, 1, 1]


def test_one_process_at_a_time_searches(bench: Bench) -> None:
    with (
        alone(bench.folder / "lamps_isa" / ".s.db.lock"),
        pytest.raises(ConfigError, match=r"another .*s.db"),
    ):
        bench.search()


def test_a_file_that_is_no_store_is_told(bench: Bench) -> None:
    path = bench.folder / "lamps_isa" / "s.db"
    path.parent.mkdir(parents=True)
    path.write_text("not a database, " * 100)
    with pytest.raises(ConfigError, match=r"s.db cannot be used"):
        bench.search()


@pytest.mark.parametrize(
    "setting",
    [{"n_trials": 0}, {"n_trials": "many"}, {"seed": -1}, {"pruner": "mean"}, {"n_warmup_steps": 1.5}],
)
def test_a_setting_that_cannot_work_is_named(setting: dict[str, object], bench: Bench) -> None:
    ((key, _),) = setting.items()
    with pytest.raises(ConfigError, match=f"hydra.sweeper.{key}"):
        bench.search(**setting)
    assert not bench.folder.exists()


# ---------------------------------------------------------------- failures, and what is given up


def test_the_search_goes_on_without_a_failed_trial_and_the_same_command_draws_another(bench: Bench) -> None:
    arguments = [SPACE[0], "attention.group_size=[8,8],[0,0]"]
    with pytest.raises(SweepError, match=r"of 4 jobs(.|\n)*trial \d+: no such partition"):
        bench.search(*arguments, n_trials=4)
    bad = [trial for trial in bench.study.trials if trial.params["attention.group_size"] == "[0,0]"]
    assert 0 < len(bad) < 4
    assert all(trial.state is TrialState.FAIL for trial in bad)
    assert bench.states.count("C") == 4 - len(bad)
    bench.curve = lambda cfg: [float("nan")]
    with pytest.raises(SweepError, match="finite val/mIoU, got nan"):
        bench.search(*arguments, n_trials=4)
    assert len(bench.launched) == 4 + len(bad)
    assert len({tuple(words) for words in bench.launched}) == len(bench.launched)


def test_a_job_stopped_from_outside_goes_on(bench: Bench) -> None:
    bench.at = {2: Outcome("stopped")}
    with pytest.raises(SweepError, match="same command tries again:(.|\n)*trial 1: stopped"):
        bench.search(n_trials=3)
    assert bench.states == "CRC"
    bench.search(n_trials=3)
    assert bench.states == "CCC"
    assert bench.launched[3] == bench.launched[1]


def falling(cfg: DictConfig) -> list[float]:
    """Five validations, better for a smaller rate."""
    return [step / 5 - cfg.optim.lr for step in range(1, 6)]


def test_what_is_worse_than_the_others_is_stopped_by_a_pruner_alone(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.curve = falling
    study = bench.search(n_trials=8, n_startup_trials=3, pruner="median", n_warmup_steps=2)
    pruned, said = study.get_trials(states=(TrialState.PRUNED,)), capsys.readouterr().err
    assert pruned
    assert set(bench.states) == {"C", "P"}
    assert bench.states.startswith("CCC")
    for trial in pruned:
        assert trial.last_step is not None
        assert 2 <= trial.last_step < 5, "not before the warm-up, not after the last step"
        assert trial.value == pytest.approx(trial.last_step / 5 - trial.params["optim.lr"])
        assert f"pruned trial {trial.number} after step {trial.last_step}" in said
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        assert trial.value == pytest.approx(1 - trial.params["optim.lr"])
        assert len(trial.intermediate_values) == 5
    other = Bench(bench.base, bench.folder / "other")
    other.curve = falling
    other.search(n_trials=8, n_startup_trials=3, n_warmup_steps=2)
    assert other.states == "C" * 8


def test_the_end_tells_every_trial_and_how_to_train_the_best_again(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    study = bench.search(*SPACE, "name='my runs'", n_trials=4)
    said = capsys.readouterr().out
    best = min(study.trials, key=lambda trial: trial.params["optim.lr"])
    assert f"best: trial {best.number}, mIoU {100 * best.value:.2f} %" in said
    (line,) = re.findall(r"^isaseg train (.*)$", said, flags=re.MULTILINE)
    assert shlex.split(line) == bench.launched[best.number]
    lines = " ".join(said.split())
    assert all(f"mIoU {100 * t.value:.2f} % optim.lr={t.params['optim.lr']}" in lines for t in study.trials)
    assert sorted(path.name for path in (bench.folder / "my-runs").iterdir() if path.is_file()) == [
        ".s.db.lock",
        "s.db",
    ]


# ---------------------------------------------------------------- as a user starts it

DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
DDP += ["trainer.sync_batchnorm=false", "trainer.benchmark=false"]
PROCESSES = {1: ["trainer.accelerator=cpu"], 2: DDP}


@pytest.mark.parametrize("processes", PROCESSES if STRESS else [1])
def test_a_killed_search_with_a_failing_trial_is_finished_by_the_same_command(
    processes: int, tmp_path: Path
) -> None:
    """The first trial fails, and another one is drawn for it; SIGKILL comes in the second, after a validation."""
    command = ["-m", "sweep=search", "hydra.sweeper.n_trials=2", "hydra.sweeper.seed=0"]
    command += ["attention.group_size=[4,4],[0,0]", *PROCESSES[processes], *TINY, "trainer.max_steps=4"]
    folder = tmp_path / "outputs" / "lamps_isa"
    first = forked.start("train.py", *command, cwd=tmp_path, children=True)
    try:
        until(lambda: list(folder.glob("*/checkpoints/best.ckpt")))
    finally:
        os.kill(first.pid, signal.SIGKILL)
        killed = first.wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = f"sqlite:///{folder}/search.db"
    begun = optuna.load_study(study_name=None, storage=store).trials
    assert [trial.state.name for trial in begun] == ["FAIL", "RUNNING"]
    again = forked.run("train.py", *command, cwd=tmp_path, children=True)
    assert again.returncode == 0, again.stderr
    assert "trial 1 continues" in again.stderr
    trials = optuna.load_study(study_name=None, storage=store).trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"], again.stderr
    assert [trial.params for trial in trials[:2]] == [trial.params for trial in begun]
    assert "group_size=[0, 0]" in (failure(tmp_path / trials[0].user_attrs["folder"]) or "")
    (listed,) = folder.glob("search-*.sweep")
    members = listed.read_text().splitlines()[1:]
    assert members == [Path(trial.user_attrs["folder"]).name for trial in trials]
    assert sorted(members) == sorted(path.name for path in folder.iterdir() if path.is_dir())
    for trial, member in list(zip(trials, members, strict=True))[1:]:
        assert trial.value == json.loads((folder / member / "metrics.json").read_text())["val/mIoU"]
        assert OmegaConf.load(folder / member / "config.yaml").optim.lr == trial.params["optim.lr"]

"""X: a configuration can name only what is allowed, and an invalid value is refused before anything is made."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.config.checks import check
from isaseg.errors import ConfigError, DivergenceError, IsasegError
from isaseg.training.run import train
from isaseg.trust import VARIABLE
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, STRESS, attempted

CONF = config.conf_dir()


def files(folder: Path) -> list[Path]:
    """Return what there is but empty folders: Hydra makes that of `output_dir`."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


# Each would write a file "ran" in the folder where it is run, if it ran.
HOSTILE = {
    "a function of the system": "{_target_: os.system, command: touch ran}",
    "by way of another module": "{_target_: logging.os.system, command: touch ran}",
    "by way of ours": "{_target_: isaseg.training.run.os.system, command: touch ran}",
    "by way of an allowed one": "{_target_: isaseg.data.sets.lamps.np.save, file: ran, arr: 1}",
    "beside an allowed one": "{_target_: lightning.pytorch.Trainer.__init__.__globals__, x: 1}",
    "a builtin": '{_target_: builtins.eval, source: \'open("ran","w")\'}',
    "a hub": "{_target_: torch.hub.load, repo_or_dir: '.', model: m, source: local}",
    "a pickle": "{_target_: torch.load, f: pickled, weights_only: false}",
    "hydra itself": "{_target_: hydra.utils.instantiate, config: {_target_: os.system, command: touch ran}}",
    "a partial of it": "{_target_: os.system, _partial_: true, command: touch ran}",
    "in a partial": "{_target_: isaseg.models.baselines.SelfAttention2d, _partial_: true, "
    "key_channels: {_target_: os.system, command: touch ran}}",
    "in a list": "[1, [2, {_target_: os.system, command: touch ran}]]",
    "in a mapping": "{a: {b: {_target_: os.system, command: touch ran}}}",
    "what of ours writes": "{_target_: isaseg.runs.run_folder.write_json, path: ran, content: {}}",
    "imported by an allowed one": "{_target_: isaseg.data.sets.folder.Path}",
    "of a library that reads and writes": "{_target_: albumentations.save, transform: null, filepath: ran}",
    "of a library that unpickles": "{_target_: timm.create_model, model_name: resnet18, checkpoint_path: pickled}",
    "by way of a library": "{_target_: timm.models.os.system, command: touch ran}",
    "imported by a library": "{_target_: timm.models.resnet.partial, func: os.system}",
    "a class of no known base": "{_target_: torch.nn.modules.module.OrderedDict}",
    "beside a module": "{_target_: torch.nn.Module.__init__.__globals__}",
    "a script": "{_target_: torch.jit.ScriptModule}",
    "code from text": "{_target_: torch.fx.GraphModule, root: {}, graph: null}",
    "a package": "{_target_: torch.package.PackageImporter, file_or_buffer: pickled}",
    "a metric that fetches": "{_target_: torchmetrics.text.BERTScore, model_name_or_path: pickled}",
    "a logger of another kind": "{_target_: lightning.fabric.loggers.CSVLogger, root_dir: ran}",
    "a private module": "{_target_: torch._dynamo.config.X}",
    "of a package that is not trusted": "{_target_: hostilelab.Mine}",
    "a name that begins alike": "{_target_: isasegevil.attention.X}",
    "a module": "{_target_: isaseg.models.interlaced}",
    "no name": "{_target_: 3}",
    "a list for a name": "{_target_: [os.system]}",
}


@pytest.mark.parametrize(
    "key",
    ["attention", "data.transform.augment", "backbone", "logger"] if STRESS else ["data.transform.augment"],
)
@pytest.mark.parametrize("trust", ["", "mylab,otherlab"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_x1_what_a_configuration_may_not_name_is_not_run(
    kind: str, trust: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the checks before a run nor by the one function that builds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, trust)
    Path("hostilelab.py").write_text("open('ran', 'w').close()\n")
    cfg = compose_overrides(*SMALL, "trainer.max_steps=1", "run_dir=run")
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, key, OmegaConf.create(HOSTILE[kind]), merge=False)
    before = set(tmp_path.iterdir())
    node = key.split(".")[0]
    for refused in (lambda: train(cfg), lambda: config.build(cfg[node], node)):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert re.search(rf"{node}\b.*_target_", str(caught.value))
    assert set(tmp_path.iterdir()) == before


def test_x1_hydra_knows_no_way_around(tmp_path: Path) -> None:
    """Through the command: what is refused is one sentence with the key, exit code 2, and nothing is made."""
    for word in ("+data.evil={_target_: os.system, command: touch ran}", "optim._target_=torch.hub.load"):
        done = forked.run("train.py", word, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert re.match(r"error: .*(data\.evil|optim)\._target_", done.stderr), done.stderr
    assert files(tmp_path) == []


@pytest.mark.parametrize("word", ["_args_: [1]", "_convert_: none", "_partail_: true", "_recursive_: 1"])
def test_x1_of_hydras_words_only_those_that_are_needed(word: str) -> None:
    node = OmegaConf.create(f"{{_target_: isaseg.models.baselines.SelfAttention2d, _partial_: true, {word}}}")
    with pytest.raises(ConfigError, match=word.split(":")[0]):
        config.build(node, "attention")  # type: ignore[arg-type]


TYPOS = [
    (["trainer.max_stpes=1"], "did you mean 'trainer.max_steps'"),
    (["+trainer.max_stpes=1"], "did you mean 'max_steps'"),
    (["atention=dense"], "did you mean 'attention'"),
    (["attention=dnse"], "no option 'dnse' in the group attention; did you mean 'dense'"),
    (["experiment=lamp_isa"], "did you mean 'lamps_isa'"),
    (["attention.group_sizes=[4,4]"], "did you mean 'attention.group_size'"),
    (
        [
            "data.transform.augment=[{_target_: albumentations.Blur}, {_target_: albumentations.Rotate, prob: 1}]"
        ],
        "'data.transform.augment[1].prob'; did you mean 'p'",
    ),
    (["callbacks=[default,ema]", "callbacks.ema.decya=0.9"], "did you mean 'callbacks.ema.decay'"),
    (["+callbacks.pictures.cuont=3"], "did you mean 'count'"),
    (["+callbacks.picturs=3"], "did you mean 'pictures'"),
    (
        ["callbacks=[default,lr_monitr]"],
        "no option 'lr_monitr' in the group callbacks; did you mean 'lr_monitor'",
    ),
    (["optim.optimizr=3"], "did you mean 'optim.optimizer'"),
    (["optim.optimizer.betaz=[0.9,0.95]"], "has a + before it: +optim.optimizer.betaz"),
    (["+optim.optimizer.betaz=[0.9,0.95]"], "did you mean 'betas'"),
    (["optim/schedule=cosin"], "no option 'cosin' in the group optim/schedule; did you mean 'cosine'"),
    (["optim.schedule.powr=2"], "did you mean 'optim.schedule.power'"),
    (["+head.channel=3"], "did you mean 'channels'"),
    (["+sede=3"], "did you mean 'seed'"),
    (["sweep=ordr"], "no option 'ordr' in the group sweep; did you mean 'order'"),
]


@pytest.mark.parametrize(("words", "said"), TYPOS)
def test_x2_a_typo_fails_at_once_with_the_nearest_name(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert attempted(*SMALL, "trainer.max_steps=1", *words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1, err
    assert files(tmp_path) == []


@pytest.mark.parametrize(("words", "said"), TYPOS if STRESS else TYPOS[:2])
def test_x2_so_does_the_command(words: list[str], said: str, tmp_path: Path) -> None:
    done = forked.run("train.py", *SMALL, "trainer.max_steps=1", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert files(tmp_path) == []


def test_x2_a_sweep_is_shown_by_one_of_its_runs_and_needs_m(tmp_path: Path) -> None:
    for words in (["-m", "--cfg", "job"], ["--multirun", "--cfg=job", "seed=0,1"], ["-m", "--info"]):
        done = forked.run("train.py", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert "got both; leave out -m" in done.stderr and done.stderr.count("\n") == 1
    done = forked.run("train.py", "sweep=order", "trainer.max_steps=-1", cwd=tmp_path)
    assert "warning: without -m, sweep=order trains one run\nerror: " in done.stderr
    done = forked.run("train.py", "trainer.max_steps=-1", cwd=tmp_path)
    assert done.stderr.startswith("error: ")
    assert files(tmp_path) == []


OWN = "+callbacks.own._target_=lightning.pytorch.callbacks"
VALUES = [
    ("attention._target_=isaseg.config.json.loads", "attention._target_ to begin with"),
    ("attention._target_=isaseg.models.interlaced.Nothing", "attention._target_ to name a class or function"),
    ("attention.group_size=[0,8]", "two positive integers"),
    ("attention.group_size=[8]", "two positive integers"),
    ("attention.group_size=8", "attention.group_size to be a list, got attention.group_size=8"),
    ("attention.group_size=[8,1.5]", r"attention.group_size\[1\] to be an integer"),
    ("attention.group_size=${nothing}", "attention.group_size of the configuration does not resolve"),
    ("attention.mask_padding=maybe", "attention.mask_padding to be true or false"),
    ("attention.order=short", ""),
    ("attention.order=shrt", "attention.order to be 'long_short', 'short_long', 'long' or 'short'"),
    ("attention=isa_parallel attention.group_sizes=[]", "at least one pair in group_sizes"),
    ("attention=pyramid_pooling attention.bins=[]", "bins of at least 1"),
    ("attention=pyramid_pooling attention.bins=[0]", "bins of at least 1"),
    ("attention.depth=0", "depth as an integer of at least 1"),
    ("attention.key_channels=0", "number of channels of at least 1"),
    ("attention.value_channels=-3", "number of channels of at least 1"),
    ("backbone.out_indices=[]", "at least one feature map"),
    ("backbone.output_stride=7", "output_stride"),
    ("backbone.name=3", "backbone.name to be text, got backbone.name=3"),
    ("backbone.pretrained=1", "backbone.pretrained to be true or false"),
    ("data.name='...'", "data.name to be text with a letter"),
    ("data.batch_size=0", "data.batch_size to be greater than 0, got data.batch_size=0"),
    ("data.batch_size=true", "data.batch_size to be an integer, got data.batch_size=True"),
    ("data.val_batch_size=0", "data.val_batch_size to be greater than 0"),
    ("data.crop_size=[0,8]", r"data.crop_size to be \[height, width\]"),
    ("data.crop_size=[8]", r"data.crop_size to be \[height, width\]"),
    ("data.num_classes=1", "data.num_classes to be greater than or equal to 2"),
    ("data.num_classes=19", "for each of the 19 classes"),
    ("data.num_workers=-1", "data.num_workers to be greater than or equal to 0"),
    ("data.ignore_index=7", "outside the classes 0 to 7"),
    ("data.ignore_index=null", "data.ignore_index to be an integer, got data.ignore_index=None"),
    ("data.timeout=abc", "data.timeout to be a valid number, got data.timeout=abc"),
    ("data.val_length=0", "data.val_length to be greater than 0 or null, got data.val_length=0"),
    ("data.max_steps=2", "data.max_steps to be trainer.max_steps=1"),
    ("data.accumulate=2", "data.accumulate to be trainer.accumulate_grad_batches=1"),
    ("data.seed=-1", "data.seed to be greater than or equal to 0"),
    ("data.source.val_length=null", "data.source.val_length to be an integer"),
    ("data.source.train_length=0", "data.source.train_length to be greater than 0"),
    ("data.transform.scale=[2,1]", "scale"),
    (
        "data.transform.augment=[{_target_:albumentations.OneOf,transforms:[]},{_target_:albumentations.Blur,p:20}]",
        r"data\.transform\.augment\[1\] cannot be built: p: Input should be less than or equal to 1, got 20$",
    ),
    ("data.transform.augment=blue", "data.transform.augment to be a list"),
    (
        "data.transform.augment=[blue]",
        r"data.transform.augment\[0\] to be an albumentations transform, got 'blue'",
    ),
    ("loss.ignore_index=7", "loss.ignore_index to be data.ignore_index=255"),
    ("loss.class_weights=1", "loss.class_weights to be a list or null, got loss.class_weights=1"),
    ("recipe.average=most", "recipe.average to be 'labelled' or 'all', got recipe.average=most"),
    ("recipe.average=all", "expected loss.average=labelled with loss.class_weights, got loss.average=all"),
    ("score=first", "score to be 'best' or 'last', got score=first"),
    ("loss.class_weights=[1,2]", "one weight of at least 0 for each of the 8 classes"),
    ("loss.class_weights=[1,1,1,1,1,1,1,-1]", "one weight of at least 0 for each of the 8 classes"),
    ("loss.class_weights=[1,1,1,1,1,1,1,inf]", r"loss.class_weights\[7\] to be a finite number"),
    ("optim.lr=0", "optim.lr to be greater than 0"),
    ("optim.lr=nan", "optim.lr to be a finite number"),
    ("optim=adamw_poly optim.schedule.min_lr=1", "optim.schedule.min_lr below optim.lr=0.0001, got 1"),
    ("optim=adamw_poly optim.schedule.power=-1", "optim.schedule.power to be greater than or equal to 0"),
    ("optim/schedule=cosine optim.schedule.warmup_steps=-1", "warmup_steps to be greater than or equal to 0"),
    ("optim.schedule.warmup=2", "optim.schedule.warmup to be less than or equal to 1"),
    ("optim.schedule=poly", "optim.schedule to be a node with _target_, got optim.schedule=poly"),
    ("optim.layer_decay=0", "optim.layer_decay to be greater than 0 or null"),
    ("optim.layer_decay=2", "optim.layer_decay to be less than or equal to 1 or null"),
    ("optim=sgd_poly optim.optimizer.momentum=high", "optim.optimizer.momentum to be a valid number"),
    ("optim=sgd_poly optim.optimizer.momentum=-1", "SGD cannot be built: Invalid momentum value: -1"),
    (
        "optim=sgd_poly optim.optimizer._target_=timm.optim.Lion",
        "Lion; ~optim.optimizer.momentum removes it",
    ),
    ("optim.weight_decay=-1", "optim.weight_decay to be greater than or equal to 0"),
    ("optim.head_lr_mult=-1", "optim.head_lr_mult to be greater than or equal to 0"),
    ("optim.total_steps=0", "optim.total_steps to be greater than 0"),
    ("head.dropout=1.5", "head.dropout to be less than or equal to 1"),
    ("head.channels=0", "head.channels to be greater than 0"),
    ("head.aux_channels=0", "head.aux_channels to be greater than 0 or null"),
    ("~head.channels", "a value for head.channels, got none"),
    ("~data.ignore_index", "ignore_index"),
    ("head=3", "head to be a section of keys"),
    ("attention=none", ""),
    ("aux_weight=-1", "aux_weight to be greater than or equal to 0"),
    ("trainer.max_steps=0", "trainer.max_steps to be greater than 0, got trainer.max_steps=0"),
    ("trainer.precision=33", "trainer.precision"),
    ("trainer.devices=0", "trainer"),
    ("trainer.accelerator=abacus", "trainer"),
    ("trainer.strategy=none_such", "trainer"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val to be greater than or equal to 0 or null"),
    ("trainer.accumulate_grad_batches=3", "data.batch_size"),
    ("protocol=mmseg", "no values of protocol=mmseg are known for data=lamps; choose protocol=none"),
    ("seed=-1", "seed to be greater than or equal to 0, got seed=-1"),
    ("seed=99999999999", "seed to be less than 4294967296"),
    ("name='...'", "name to be text with a letter"),
    ("name=???", "a value for name, got none; give it as name=VALUE"),
    ("pictures=-1", "pictures to be greater than or equal to 0"),
    ("callbacks.pictures.count=-1", "callbacks.pictures.count to be greater than or equal to 0"),
    ("callbacks.pictures=0", "callbacks.pictures to be a node with _target_"),
    (
        "callbacks.pictures._target_=isaseg.models.losses.CrossEntropy",
        "callbacks.pictures._target_ to name a",
    ),
    ("+callbacks.pictures._partial_=true", "callbacks.pictures._target_ to make a callback of Lightning"),
    ("callbacks=[ema] callbacks.ema.decay=1", "callbacks.ema.decay to be less than 1"),
    (
        "callbacks=early_stopping callbacks.early_stopping.mode=most",
        "callbacks.early_stopping cannot be built",
    ),
    ("callbacks=early_stopping callbacks.early_stopping.monitor=val/mIuO", "did you mean 'val/mIoU'"),
    ("callbacks=early_stopping callbacks.early_stopping.monitor=train/loss", "did you mean 'val/loss'"),
    (f"{OWN}.StochasticWeightAveraging +callbacks.own.swa_lrs=0.1", "use callbacks=.default,ema."),
    (
        f"{OWN}.BackboneFinetuning",
        "callbacks.own to leave the run .* got BackboneFinetuning; use backbone.fr",
    ),
    (f"{OWN}.LearningRateFinder", "use optim.lr"),
    (f"{OWN}.BatchSizeFinder", "use data.batch_size"),
    (f"{OWN}.GradientAccumulationScheduler +callbacks.own.scheduling={{0:2}}", "use trainer.accumulate_"),
    (f"{OWN}.ModelCheckpoint +callbacks.own.filename=best", "other files than best.ckpt and last.ckpt"),
    (
        f"{OWN}.ModelCheckpoint +callbacks.own.save_last=true +callbacks.own.dirpath=run/checkpoints",
        "save_last",
    ),
    ("~callbacks.model_summary ~callbacks.pictures", ""),
    (
        "+callbacks.my-own._target_=isaseg.training.callbacks.EMA",
        "a name of letters, digits and _ in callbacks",
    ),
    ("+trainer.callbacks=[]", "expected no trainer.callbacks, got one; add a node to callbacks"),
    ("check_data=1", "check_data to be true or false"),
    ("logger=wandb logger.wandb.mode=onlin", "logger.wandb.mode to be .online"),
    ("resume=1", "resume to be auto, must, never, extend or the path of a checkpoint, got resume=1"),
]


@pytest.mark.parametrize(("word", "said"), VALUES)
def test_x3_an_invalid_value_is_refused_before_anything_is_made(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose_overrides(*SMALL, "trainer.max_steps=1", *word.split(), "run_dir=run")
    if not said:
        assert 0 <= train(cfg)["val/mIoU"] <= 1
        return
    with pytest.raises(ConfigError, match=said):
        train(cfg)
    assert list(tmp_path.iterdir()) == []


ONE = [*SMALL, "trainer.max_steps=1", "callbacks.pictures.count=0"]
OPTIONS = {
    group: sorted(p.stem for p in (CONF / group).glob("[!_]*.yaml"))
    for group in ("attention", "loss", "optim")
}
WORDS = ["auto", "cpu", "isa", "linear", "os.system", "isaseg.models.baselines.SelfAttention2d"]
ANY = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from([0.5, -0.5, 1e30, float("nan"), float("inf"), float("-inf")]),
        st.text("ab/.=;$ ", max_size=4),
        st.sampled_from(WORDS),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "_target_", "_partial_"]), inner, max_size=2),
    ),
    max_leaves=4,
)


@settings(
    max_examples=3000 if STRESS else 15,
    deadline=None,
    database=None,
    derandomize=not STRESS,
    phases=[Phase.generate],  # a run takes too long to look for a shorter case
    suppress_health_check=list(HealthCheck),
)
@given(options=st.fixed_dictionaries({k: st.sampled_from(v) for k, v in OPTIONS.items()}), data=st.data())
def test_x3_any_value_of_any_key_works_or_is_refused_before_work(
    options: dict[str, str], data: st.DataObject
) -> None:
    """With any context module, loss and optimizer. Never an exception of another kind; a refusal leaves nothing."""
    words = [f"{group}={option}" for group, option in options.items()]
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_overrides(*ONE, *words, f"run_dir={folder}/run", f"output_dir={folder}/out")
        keys = {*config.leaves(OmegaConf.to_container(cfg))} - {"run_dir", "output_dir"}
        key = data.draw(st.sampled_from(sorted(keys)))
        try:
            OmegaConf.update(cfg, key, data.draw(ANY), merge=False)
            train(cfg)
        except DivergenceError:
            assert key.startswith(("optim.", "loss.", "aux_weight", "head."))
        except (IsasegError, HydraException, OmegaConfBaseException) as error:
            assert str(error)
            assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize(
    "word",
    ["name=${oc.env:SECRET}", "data.root=${oc.env:SECRET,x}", "+logger.own.group='a ${ oc.env : SECRET }'"],
)
def test_s4_only_listed_variables_may_be_taken_from_the_environment(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(ConfigError, match="oc.env:SECRET") as caught:
        train(compose_overrides(*SMALL, word, f"output_dir={tmp_path}"))
    assert "hunter2" not in str(caught.value)
    hidden = ["name=env", "data.root='${oc.${name}:SECRET}'"]
    with pytest.raises(ConfigError, match="oc.env:SECRET"):
        train(compose_overrides(*SMALL, *hidden, f"output_dir={tmp_path}"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SCRATCH", "here")
    cfg = compose_overrides("data.root=${oc.env:SCRATCH}")
    check(cfg)
    assert cfg.data.root == "here"


def test_s4_the_key_of_wandb_is_in_no_file(tmp_path: Path) -> None:
    """Nor in the names of files, nor in what is printed, of a run that fails, which has files of all kinds."""
    key = "0123456789abcdef" * 3
    words = [*SMALL, "logger=wandb", "trainer.max_steps=9", "output_dir=out", "optim.lr=1e30"]
    words += ["checkpoint_every_n_steps=1"]
    secret = {"WANDB_API_KEY": key, "HF_TOKEN": key[::-1]}
    done = forked.run("train.py", *words, cwd=tmp_path, **secret)
    assert done.returncode == 3, done.stderr
    assert not any(value in done.stdout + done.stderr for value in secret.values())
    assert {".wandb", ".ckpt", ".csv", ".yaml"} <= {path.suffix for path in files(tmp_path)}
    assert list(tmp_path.rglob("failed.txt"))
    for path in files(tmp_path):
        assert not any(v.encode() in path.read_bytes() or v in str(path) for v in secret.values()), path


def test_x5_weights_are_fetched_only_where_they_are_asked_for(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """`conftest.py` lets no test reach a network: what would fetch fails, and says which file to place where."""
    for option in (p.stem for p in (CONF / "backbone").glob("[!_]*.yaml")):
        assert compose(f"backbone={option}").backbone.pretrained is False
    with pytest.raises(ConfigError, match=r"backbone\.weights"):
        train(compose(*SMALL, "backbone.pretrained=true", "backbone.name=resnet18", f"run_dir={tmp_path}/r"))
    with pytest.raises(ConfigError, match=r"no/such\.safetensors"):
        train(compose(*SMALL, "backbone.weights=no/such.safetensors", f"run_dir={tmp_path}/r"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["output_dir=file/out"], ["run_dir=file/run"], ["-m", "seed=0,1", "output_dir=file/out"]]
)
def test_x3_a_folder_that_cannot_be_made_is_reported(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = forked.run("train.py", *words, *SMALL, "trainer.max_steps=1", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "error: expected a " in done.stderr and "file/" in done.stderr
    assert "Traceback" not in done.stderr and "Error executing" not in done.stderr
    assert files(tmp_path) == [tmp_path / "file"]


@pytest.mark.parametrize(
    "name",
    ["a/b", "../up", "../a; touch ran", "$(touch ran)", "a b", "é", ".hidden", "a\\b", "-rf", "x=[1,2]"],
)
def test_x6_a_name_is_one_folder_and_no_command(
    name: str, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose(*SMALL, "trainer.max_steps=1", "output_dir=out")
    cfg.name = name
    root, folder, run = config.run_dir(cfg).parts
    assert root == "out"
    assert re.fullmatch(r"[\w=,-][\w.=,-]*", folder)
    assert re.fullmatch(r"[\w.=,-]+", run)
    if ";" in name:
        train(cfg)
        assert os.listdir(tmp_path) == ["out"]
        assert os.listdir(tmp_path / "out") == [folder]


def test_x2_a_key_of_the_users_own_is_one_that_another_interpolates() -> None:
    check(compose_overrides("+wide=16", "head.channels=${wide}"))
    check(compose_overrides("+head.negative_slope=0.01"))
    with pytest.raises(ConfigError, match="no configuration key 'wide'"):
        check(compose_overrides("+wide=16"))

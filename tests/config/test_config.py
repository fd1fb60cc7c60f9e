"""Every YAML composes and builds; names follow from what a run computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from isaseg import config
from isaseg.config.checks import check
from isaseg.errors import ConfigError
from tests.conftest import compose_overrides as load

CONF = config.conf_dir()
OPTIONS = [(p.parent.name, p.stem) for p in sorted(CONF.glob("*/*.yaml")) if not p.stem.startswith("_")]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_yaml_composes_and_passes_the_checks(group: str, option: str) -> None:
    if group in ("apply", "hydra", "protocol"):
        pytest.skip("part of other compositions")
    cfg = load(
        f"{group}={option}",
        "data.root=somewhere",
        *(["data.classes=[a,b]"] if option in ("folder", "finetune") else []),
    )
    if group == "recipe":
        cfg.loss.class_weights = None  # the default experiment weighs the classes of lamps
    check(cfg)
    config.build(cfg.attention, "attention")(16)
    assert config.run_dir(cfg).parent.parent == Path("outputs")


LABELS = {
    "isa": "isa-8x8",
    "isa attention.group_size=[4,2] attention.order=long attention.depth=2": "isa-4x2-long-d2",
    "isa attention.heads=4 attention.position_bias=7 attention.residual=true": "isa-8x8-h4-bias7-residual",
    "isa_parallel": "isa-parallel",
    "grid_block attention.grid_size=[6,5]": "grid-block-8x8-6x5",
    "grid_block attention.order=grid_window": "grid-block-8x8-8x8-grid_window",
    "shifted_windows": "shifted-windows-8x8",
    "axial": "axial",
    "neighbourhood": "neighbourhood-k7",
    "neighbourhood_dilated": "neighbourhood-k7-dilated-1x4",
    "pooled_keys": "pooled-keys-8x8",
    "dense": "dense",
    "criss_cross": "criss-cross-r2",
    "criss_cross_plain attention.passes=3": "criss-cross-plain-r3",
    "pyramid_pooling": "pyramid-pooling",
    "double_attention": "double-attention",
    "none attention._target_=mylab.attention.Mine": "Mine",
}


@pytest.mark.parametrize("words", LABELS)
def test_the_name_of_a_run_begins_with_that_of_its_context_module(words: str) -> None:
    cfg = load(*f"attention={words}".split(), "seed=3")
    assert config.attention_label(cfg) == LABELS[words]
    assert config.run_name(cfg).startswith(f"{LABELS[words]}_test_resnet_seed3_")


ADE20K = "experiment=ade20k_isa data.root=a"
FOLDER = "data=folder data.classes=[a,b] data.root=a"


@pytest.mark.parametrize(
    ("words", "more", "is_same"),
    [
        ("", "data.num_workers=2 trainer.devices=1 resume=never logger=csv", True),
        ("", "recipe.lr=2", True),  # of optim=sgd_poly alone
        ("", "callbacks=[] pictures=0", True),
        ("", "callbacks=[default,lr_monitor] ~callbacks.pictures trainer=default", True),
        ("", "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", False),
        ("", "callbacks.pictures._target_=mylab.Pictures", False),
        ("", "seed=1", False),
        ("", "optim.lr=0.1", False),
        ("", "attention=dense", False),
        ("", "attention.group_size=[4,4]", False),
        (ADE20K, "data.root=b data.cache=c data.timeout=9 data.val_batch_size=7", True),
        (ADE20K, "data.val_resize=null", False),
        (ADE20K, "recipe.lr=0.5", False),
        (FOLDER, "data.root=b", False),
    ],
)
def test_a_run_keeps_its_folder_unless_what_it_computes_changes(words: str, more: str, is_same: bool) -> None:
    folders = [config.run_dir(load(*text.split())) for text in (words, f"{words} {more}")]
    assert (folders[0] == folders[1]) is is_same


def test_a_folder_can_be_named_and_is_never_above() -> None:
    assert config.run_dir(load("run_dir=a/b")) == Path("a/b")
    assert config.run_dir(load("name=../up")).parts[:2] == ("outputs", "-up")


@pytest.mark.parametrize("experiment", ["ade20k_isa", "cityscapes_isa", "camvid_isa", "lamps_isa"])
def test_another_optimizer_comes_with_its_own_learning_rate(experiment: str) -> None:
    optim = load(f"experiment={experiment}", "optim=adamw_poly").optim
    assert (optim.lr, optim.weight_decay, optim.schedule.power, optim.schedule.min_lr) == (1e-4, 1e-2, 1, 0)


def test_a_schedule_goes_with_any_optimizer_from_the_command_line_or_an_experiment(tmp_path: Path) -> None:
    names = [path.stem for path in (CONF / "optim" / "schedule").glob("*.yaml")]
    assert {"poly", "cosine", "one_cycle", "constant"} <= {*names}
    for name in names:
        cfg = load("optim=sgd_poly", f"optim/schedule={name}")
        check(cfg)
        assert cfg.optim.schedule._target_.rpartition(".")[2] == {
            "linear": "poly",
            "one_cycle_squared": "one_cycle",
        }.get(name, name)
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\ndefaults: [override /optim: sgd_poly, override /optim/schedule: cosine]\nname: own\n"
    (tmp_path / "experiment" / "own.yaml").write_text(own)
    for words, schedule in (([], "cosine"), (["optim/schedule=constant"], "constant")):
        cfg = load(f"hydra.searchpath=[file://{tmp_path}]", "experiment=own", *words)
        assert cfg.optim.optimizer._target_ == "torch.optim.SGD"
        assert cfg.optim.schedule._target_ == f"isaseg.training.schedules.{schedule}"


@pytest.mark.parametrize(
    ("steps", "wanted", "interval"),
    [(420, 70, 70), (100, 70, 50), (100, 30, 25), (101, 30, 30), (101, 60, 101), (4, 10, 4)],
)
def test_the_last_step_is_validated(steps: int, wanted: int, interval: int) -> None:
    cfg = load(f"trainer.max_steps={steps}", f"trainer.val_check_interval={wanted}")
    assert config.validation_interval(cfg) == interval


def test_each_default_is_stated_once() -> None:
    cfg = load("trainer.max_steps=123", "data.ignore_index=254", "seed=5")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    assert plain["optim"]["total_steps"] == 123
    assert plain["loss"]["ignore_index"] == 254
    assert (plain["data"]["seed"], plain["data"]["max_steps"]) == (5, 123)


def test_albumentations_asks_no_server_for_a_newer_version() -> None:
    """`isaseg` sets the variable that turns this off, before it imports any of it."""
    env = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    code = "import isaseg, os, sys; print(os.environ['NO_ALBUMENTATIONS_UPDATE'], 'albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["1", "False"]


DATA = [p.stem for p in sorted((CONF / "data").glob("*.yaml")) if not p.stem.startswith("_")]
PROTOCOLS = [p.stem for p in sorted((CONF / "protocol").glob("*.yaml"))]
PUBLISHED = [
    (data, protocol)
    for data in DATA
    for protocol in PROTOCOLS
    if (CONF / "recipe" / f"{data}_{protocol}.yaml").is_file()
]


def test_every_published_data_set_has_both_protocols() -> None:
    main = {"cityscapes", "ade20k", "lip", "pascal_voc", "pascal_context", "coco_stuff"}
    assert {(d, p) for d in main for p in ("openseg", "mmseg")} <= set(PUBLISHED)
    assert {f"{d}_{p}" for d, p in PUBLISHED} == {p.stem for p in (CONF / "recipe").glob("*.yaml")}
    assert {f"{d}_isa" for d in main} <= {p.stem for p in (CONF / "experiment").glob("*.yaml")}


def test_a_protocol_brings_the_values_of_its_data_set() -> None:
    """Of the one recipe without a source; tests/protocols holds the others against theirs."""
    data, protocol = "lip", "mmseg"
    cfg = load(f"data={data}", f"protocol={protocol}", "data.root=x", "experiment=cityscapes_isa")
    check(cfg)
    recipe = OmegaConf.load(CONF / "recipe" / f"{data}_{protocol}.yaml")
    for base in recipe.pop("defaults", ())[:1]:
        recipe = OmegaConf.merge(OmegaConf.load(CONF / "recipe" / f"{base}.yaml"), recipe)
    shared = OmegaConf.load(CONF / "protocol" / f"{protocol}.yaml")
    for base in shared.pop("defaults", ()):
        shared = OmegaConf.merge(OmegaConf.load(CONF / "protocol" / f"{base}.yaml"), shared)
    assert cfg.data.crop_size == recipe.data.crop_size
    assert cfg.data.val_resize == cfg.data.transform.resize == recipe.data.val_resize
    assert cfg.data.transform.augment == shared.data.transform.augment
    assert cfg.trainer.max_steps == recipe.trainer.max_steps
    assert cfg.optim.lr == OmegaConf.merge(shared, recipe).recipe.lr
    assert cfg.head.dropout == shared.head.dropout
    assert cfg.trainer.max_steps % config.validation_interval(cfg) == 0
    assert (
        load(f"protocol={protocol}", "experiment=cityscapes_isa", "trainer.max_steps=2").trainer.max_steps
        == 2
    )


def test_mmsegs_validations_are_ten_however_many_steps_there_are() -> None:
    """schedules/schedule_20k.py to schedule_160k.py."""
    for steps in (20_000, 40_000, 80_000, 160_000, 3):
        cfg = load("experiment=ade20k_isa", "protocol=mmseg", "data.root=x", f"trainer.max_steps={steps}")
        assert cfg.trainer.val_check_interval == max(1, steps // 10)
    with pytest.raises(ConfigError, match="trainer.max_steps to be an integer, got trainer.max_steps=few"):
        check(load("experiment=ade20k_isa", "protocol=mmseg", "data.root=x", "trainer.max_steps=few"))


def test_a_protocol_without_values_for_the_data_set_is_refused() -> None:
    cfg = load("experiment=coco_stuff_isa", "data=coco_stuff_164k", "data.root=x")
    with pytest.raises(
        ConfigError, match=r"protocol=openseg .* data=coco_stuff_164k; choose protocol=mmseg or none"
    ):
        check(cfg)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("callbacks.early_stopping.patience=3", r"; callbacks=\[default,early_stopping\] chooses the option"),
        ("logger.tensorboard.name=x", r"; logger=\[tensorboard\] chooses the option"),
        ("callbacks.stop.patience=3", "'callbacks.stop.patience'; (?!did you mean 'callbacks.stop)"),
        ("optim.optimizer.lr=0.3", r"; did you mean 'optim.lr'\? see"),
        ("loss=ohem loss.min_kept=5", r"; did you mean 'loss.min_kept_per_crop'\?"),
        ("optim.schedule.total_steps=3", r"; did you mean 'optim.total_steps'\? see"),
    ],
)
def test_a_key_that_is_elsewhere_is_answered_with_where(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.compose_from("train", word.split())


@pytest.mark.parametrize(
    ("words", "name", "steps"),
    [
        ("data=camvid", "camvid_isa", 2500),
        ("data=camvid experiment=lamps_isa", "lamps_isa", 300),
        ("data=coco_stuff_164k", "coco_stuff_164k", 1000),
        ("data=mine", "mine_isa", 7),
        ("seed=1", "lamps_isa", 300),
    ],
)
def test_a_data_set_alone_brings_its_own_experiment(
    words: str, name: str, steps: int, tmp_path: Path
) -> None:
    """And never the class weights, the recipe and the name of Lamps."""
    for file, text in (
        ("data/mine.yaml", "defaults: [camvid]\nname: mine\n"),
        ("experiment/mine_isa.yaml", "# @package _global_\nname: mine_isa\ntrainer: {max_steps: 7}\n"),
    ):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    cfg = config.compose_from("train", [f"--config-dir={tmp_path}", *words.split(), "data.root=x"])
    assert (cfg.name, cfg.trainer.max_steps) == (name, steps)


def test_an_own_folder_has_no_weights_of_lamps() -> None:
    cfg = load(*FOLDER.split())
    check(cfg)
    assert cfg.loss.get("class_weights") is None and "lamps" not in cfg.name


def test_the_recipe_decides_on_the_bias_of_the_values() -> None:
    for option in ("isa", "isa_parallel"):
        for value in (True, False):
            cfg = load(f"attention={option}", f"recipe.value_bias={str(value).lower()}")
            check(cfg)
            module = config.build(cfg.attention, "attention")(16)
            assert any(name.endswith("value.bias") for name in module.state_dict()) is value

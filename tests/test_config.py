"""Every YAML composes and builds; every mistake is told in one sentence."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.errors import ConfigError

CONF = config.conf_dir()
OPTIONS = [(p.parent.name, p.stem) for p in sorted(CONF.glob("*/*.yaml"))]


def load(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_yaml_composes_and_passes_the_checks(group: str, option: str) -> None:
    if group == "hydra":
        pytest.skip("part of every other composition")
    cfg = load(
        f"{group}={option}", "data.root=somewhere", *(["data.classes=[a,b]"] if option == "folder" else [])
    )
    if group == "data":
        cfg.loss.class_weights = None  # the default experiment weighs the classes of lamps
    config.check(cfg)
    assert config.run_dir(cfg).parent.parent == Path("outputs")


@pytest.mark.parametrize("option", [p.stem for p in sorted((CONF / "attention").glob("*.yaml"))])
def test_every_attention_yaml_builds_and_keeps_the_contract(option: str) -> None:
    import torch

    module = config.build(load(f"attention={option}").attention, "attention")(16)
    assert module.eval()(torch.randn(2, 16, 9, 11)).shape == (2, module.out_channels, 9, 11)
    assert module.cost(9, 11).mult_adds >= module.cost(9, 11).attention_mult_adds >= 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_stpes=1", "no configuration key 'trainer.max_stpes'; did you mean 'trainer.max_steps'"),
        ("atention=isa", "no configuration key 'atention'; did you mean 'attention'"),
        ("attention=isaa", "no option 'isaa' in the group attention; did you mean 'isa'"),
        ("experiment=lamp_isa", "did you mean 'lamps_isa'"),
        ("attention.group_sizes=[4,4]", "did you mean 'attention.group_size'"),
    ],
)
def test_a_typo_names_the_nearest_valid_name(override: str, message: str) -> None:
    with pytest.raises(HydraException) as error:
        load(override)
    assert message in config.explain(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=0", "trainer.max_steps to be an integer of at least 1, got trainer.max_steps=0"),
        ("trainer.max_steps=abc", "got trainer.max_steps=abc"),
        ("data.batch_size=0", "data.batch_size"),
        ("data.num_workers=-1", "data.num_workers"),
        ("optim.lr=0", "optim.lr to be a number above 0"),
        ("data.ignore_index=3", "data.ignore_index outside the classes"),
        ("data.crop_size=[8]", r"data.crop_size as \[height, width\]"),
        ("loss.class_weights=[1,2]", "one weight for each of the 8 classes"),
        ("+trainer.max_stpes=1", "no configuration key 'trainer.max_stpes'; did you mean 'max_steps'"),
        ("attention._target_=os.system", "expected attention._target_ to begin with"),
        ("attention._target_=isaseg.config.json.loads", "expected attention._target_ to"),
        ("attention._target_=isaseg.attention.Nothing", "to name a class or function"),
        ("attention.group_size=${nothing}", "does not resolve"),
        ("name=???", "expected a value for name"),
    ],
)
def test_a_wrong_value_names_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.check(load(override))


def test_a_run_keeps_its_folder_unless_what_it_computes_changes() -> None:
    base = config.run_dir(load())
    assert base == config.run_dir(
        load("data.num_workers=2", "trainer.devices=1", "resume=never", "logger=csv")
    )
    others = [
        config.run_dir(load(o))
        for o in ("seed=1", "optim.lr=0.1", "attention=dense", "attention.group_size=[4,4]")
    ]
    assert len({base, *others}) == 5
    assert config.run_dir(load("run_dir=a/b")) == Path("a/b")
    assert config.run_dir(load("name=../up")).parts[:2] == ("outputs", "-up")


def test_each_default_is_stated_once() -> None:
    cfg = load("trainer.max_steps=123", "data.ignore_index=254", "seed=5")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    assert plain["optim"]["total_steps"] == 123
    assert plain["loss"]["ignore_index"] == 254
    assert (plain["data"]["seed"], plain["data"]["max_steps"]) == (5, 123)

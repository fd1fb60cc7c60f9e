"""What most tests compose is what Hydra composes."""

from collections.abc import Callable
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.errors import ConfigError
from tests import composed
from tests.reliability.small import SMALL

WORDS = [
    "",
    "seed=3 trainer.max_steps=2 head.channels=16 logger=csv",
    "attention=dense ++attention.new={a:{b:1}} +attention.new.a.c=[1,2] seed=4",
    "attention=isa attention.group_size=[4,4] run_dir='a,b'",
    "attention.group_size=[4,4] attention=isa_long attention=isa",
    "data.root=somewhere data=cityscapes",
    "data=camvid data.root=x protocol=none",
    "data=folder data.classes=[a,b] data.root=a",
    "data=coco_stuff_164k protocol=mmseg data.root=x",
    "experiment=cityscapes_isa protocol=openseg data.root=x trainer.max_steps=2",
    "experiment=cityscapes_isa optim=muon optim/schedule=cosine data.root=x",
    "~experiment seed=1",
    "+sweep=context",
    "data=cards attention=axial,isa",
    "seed=1,2",
    "head={channels:8}",
    "head={dropout:0.2,nothing:3}",
    "attention={group_size:[2,2]}",
    "data.root=${oc.env:SCRATCH} +wide=16 head.channels=${wide}",
    "data.transform.augment=[{_target_:albumentations.HorizontalFlip,p:0.5}]",
    "callbacks=[] pictures=0",
    "callbacks=[default,lr_monitor,device_stats]",
    "callbacks=[default,early_stopping] callbacks.early_stopping.patience=3 trainer=gpu",
    "callbacks=[default,early_stoping]",
    "+callbacks.own._target_=monitored.Count callbacks.pictures._target_=mylab.Pictures",
    "~callbacks.pictures",
    "~callbacks.nothing",
    "logger=[csv,tensorboard] logger.tensorboard.name=x",
    "logger.tensorboard.name=x",
    "+seed=2",
    "++seed=2",
    "sed=2",
    "attention.rank=3",
    "attention=dnese",
    "attention@other=dense",
    "hydra.job.name=x hydra/launcher=local",
    "resume=null loss.class_weights=null head.aux_channels=null",
    "seed='3' name=3 checkpoint_every_n_steps=2.0 compile=yes",
    "seed.more=3",
    "data.root=a=b",
    "data.root=[a",
    "+optim.extra.deep=1 ++optim.extra.wide=2 optim.extra.deep=3",
    "recipe.ohem={thresh:0.9,min_kept_per_crop:12} loss=ohem recipe.average=all",
    " ".join(SMALL),
    "evaluate checkpoint=c data=ade20k protocol=openseg test.tta=true data.root=x",
    "evaluate checkpoint=c test.resize={size:[64,64]} tst=1",
]


def given(composing: Callable[[], DictConfig]) -> tuple[Any, ...]:
    """Return what a composition gives, with what it says of its values and keys, or how it fails."""
    try:
        cfg = composing()
    except Exception as error:
        return type(error), str(error), repr(error.__cause__)
    with pytest.raises(Exception) as closed:
        cfg.head.nothing = 1
    kinds = {key: type(cfg._get_node(key)) for key in cfg}
    return OmegaConf.to_container(cfg), OmegaConf.to_yaml(cfg), kinds, str(closed.value)


@pytest.mark.parametrize("words", WORDS)
def test_the_same_is_composed_and_the_same_refused(words: str) -> None:
    root, *rest = words.split() if words.startswith("evaluate ") else ("train", *words.split())
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        theirs = given(lambda: compose(root, rest))
        assert given(lambda: composed.compose(root, rest)) == theirs
        if isinstance(theirs[0], dict):
            assert given(lambda: composed.compose(root, rest)) == theirs, "and a second time"


def test_a_user_is_answered_the_same() -> None:
    for word in ("test.tt=true", "--cfg"):
        with pytest.raises(ConfigError) as theirs:
            config.compose_from("evaluate", ["checkpoint=c", word])
        with pytest.raises(ConfigError) as ours:
            composed.compose_from("evaluate", ["checkpoint=c", word])
        assert str(ours.value) == str(theirs.value)


def test_what_is_unusual_is_left_to_hydra() -> None:
    usual = "data=cityscapes experiment=cityscapes_isa optim/schedule=cosine +seeds=[1,2] head={channels:8}"
    unusual = ["seed=1,2", "hydra.job.name=x", "attention@b=isa", "~seed", "sed=3", "seed=[", "loss=nothing"]
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        assert composed._composed("train", usual.split()) is not None
        assert [word for word in unusual if composed._composed("train", [word]) is not None] == []

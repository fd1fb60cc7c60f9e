"""What a `_target_` may name: parts of this project, of libraries, and of packages that the user trusts."""

from pathlib import Path
from typing import Any

import pytest

from isaseg.config.targets import check_targets
from isaseg.errors import ConfigError
from isaseg.trust import VARIABLE

PACKAGE = """
from pathlib import Path

import torch


class Mine(torch.nn.Module):
    def __init__(self, channels, rank, wide=False, *, scale: "NotKnown" = 1.0):
        super().__init__()


class _Hidden(Mine):
    pass


def loss(logits, target, weight=1.0):
    return logits.sum()


def anything(channels, **more):
    return Mine(channels, 1)


class Called:
    def __call__(self, logits, target):
        return logits.sum()


def several(parts: dict[str, torch.nn.Module], pair: tuple[torch.nn.Module, torch.nn.Module], rank: int = None):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a package in the current folder that is trusted; each test has another."""
    name = f"own{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, f"other,{name}")
    return name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("optim.optimizer", "torch.optim.RMSprop"),
        ("optim.optimizer", "timm.optim.Lion"),
        ("callbacks.stop", "lightning.pytorch.callbacks.EarlyStopping"),
        ("callbacks.ema", "lightning.pytorch.callbacks.weight_averaging.EMAWeightAveraging"),
        ("logger.tensorboard", "lightning.pytorch.loggers.TensorBoardLogger"),
        ("loss", "torch.nn.CrossEntropyLoss"),
        ("attention", "torchvision.models.segmentation.deeplabv3.ASPP"),
        ("attention", "isaseg.models.InterlacedSparseAttention"),
        ("anything", "timm.layers.EcaModule"),
        ("anything", "torchmetrics.classification.MulticlassJaccardIndex"),
        ("anything[0]", "albumentations.HorizontalFlip"),
    ],
)
def test_classes_of_libraries_may_be_named_where_they_are_exported(key: str, name: str) -> None:
    check_targets({"_target_": name, "_partial_": True}, key)


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("callbacks.stop", "torch.nn.ReLU", "callbacks.stop._target_ to name a lightning Callback, got"),
        ("logger.mine", "torch.optim.SGD", "logger.mine._target_ to name a lightning Logger, got"),
        ("optim.optimizer", "torch.nn.ReLU", "optim.optimizer._target_ to name a torch Optimizer, got"),
        ("attention", "torch.optim.SGD", "attention._target_ to name a torch Module, got"),
        ("loss", "timm.optim.Lion", "loss._target_ to name a torch Module, got"),
        ("loss", "torch.optim.SGD.step", "loss._target_ to name a class or function, got"),
        (
            "logger.wandb",
            "lightning.pytorch.loggers.WandbLogger",
            "logger.wandb._target_=isaseg.runs.loggers.NeverFatalWandbLogger, got",
        ),
        ("optim.optimizer", "timm.optim.Lyon", "; did you mean 'Lion'"),
        ("augment", "albumentations.GaussianBlurr", "; did you mean 'GaussianBlur'"),
        ("callbacks.stop", "lightning.pytorch.callbacks.EarlyStoping", "; did you mean 'EarlyStopping'"),
    ],
)
def test_a_place_of_one_kind_takes_no_other(key: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_targets({"_target_": name}, key)


def test_a_trusted_package_gives_its_own_classes_and_functions(own: str) -> None:
    check_targets({"_target_": f"{own}.Mine", "_partial_": True, "rank": [1, "a"], "scale": "b"}, "attention")
    check_targets({"_target_": f"{own}.loss", "_partial_": True, "weight": None}, "loss")
    check_targets({"_target_": f"{own}.anything", "_partial_": True, "no_such": 1, 2: 3}, "attention")
    check_targets({"_target_": f"{own}.Called"}, "loss")
    part = {"_target_": f"{own}.Mine", "rank": 1}
    node = {"_target_": f"{own}.several", "parts": {"x": part}, "pair": [part, part], "rank": None}
    check_targets(node, "anything")
    with pytest.raises(ConfigError, match="anything.rank to be an integer, got anything.rank=a"):
        check_targets({**node, "rank": "a"}, "anything")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "Path"}, "to be a public class or function that is defined there, got"),
        ({"_target_": "torch"}, "to be a public class or function that is defined there, got"),
        ({"_target_": "_Hidden"}, "to be a public class or function that is defined there, got"),
        ({"_target_": "Mine.forward"}, "the trusted package"),
        ({"_target_": "Yours"}, "AttributeError"),
        ({"_target_": "Mine", "rnk": 3}, "no configuration key 'attention.rnk'; did you mean 'rank'"),
        ({"_target_": "loss", "wegiht": 3}, "did you mean 'weight'"),
    ],
)
def test_nothing_else_of_it(own: str, node: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_targets(node | {"_target_": f"{own}.{node['_target_']}"}, "attention")


def test_a_refusal_says_how_to_trust_but_not_for_the_standard_library() -> None:
    with pytest.raises(ConfigError, match=r"got 'mylab\.a\.Mine'; .*\+trust=\[mylab\] or ISASEG_TRUST=mylab"):
        check_targets({"attention": {"_target_": "mylab.a.Mine"}})
    for name in ("os.system", "torch.load", "3"):
        with pytest.raises(ConfigError) as caught:
            check_targets({"attention": {"_target_": name}})
        assert "trust=" not in str(caught.value)

"""The node `test` of a configuration: what each recipe sets, and a sentence for a value that cannot be."""

import re

import pytest
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.inference.protocol import inference_of
from tests.inference.tiny import compose_from

RECIPES = sorted(path.stem for path in (config.conf_dir() / "recipe").glob("*.yaml"))
PROTOCOLS = sorted(
    (path.stem for path in (config.conf_dir() / "protocol").glob("*.yaml")), key=len, reverse=True
)
BASE = compose_from()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_says_how_it_is_tested(recipe: str) -> None:
    protocol = next(p for p in PROTOCOLS if recipe.endswith(f"_{p}"))
    words = [f"data={recipe.removesuffix(f'_{protocol}')}", f"protocol={protocol}"]
    cfg = compose_from(*words)
    assert set(cfg.test) == set(BASE.test), "no key that nobody reads"
    how = inference_of(cfg, ())
    several = inference_of(with_words(cfg, "test.tta=true"), ())
    openseg = protocol == "openseg"
    assert (how.scaling, how.average) == (("network", "logits") if openseg else ("file", "probabilities"))
    assert how.interpolation == ("cubic" if openseg else "linear")
    assert how.resize == cfg.data.val_resize
    assert several.flip and 1.0 in several.scales
    assert several.resize == (how.resize if openseg else None)


def with_words(cfg: DictConfig, *words: str) -> DictConfig:
    """Return the configuration with some values changed, sooner than composed again."""
    changed = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(words)))
    assert isinstance(changed, DictConfig)
    return changed


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("test.mode=windows", "test.mode to be 'whole' or 'slide', got test.mode=windows"),
        (
            "test.crop_size=[0,64]",
            "test.crop_size to be [height, width] in pixels or null, got test.crop_size=[0, 64]",
        ),
        (
            "test.mode=slide test.crop_size=null",
            "test.crop_size to be [height, width] for test.mode=slide, got null",
        ),
        ("test.stride=9", "test.stride to be [height, width] in pixels or null, got test.stride=9"),
        ("test.mode=slide test.crop_size=[8,8] test.stride=[8,9]", "got [8, 9]; larger ones leave gaps"),
        ("test.resize=512", "test.resize as {short_side: S}"),
        ("test.tta_resize={long_side:5}", "test.tta_resize as {short_side: S}"),
        ("test.interpolation=nearest", "test.interpolation to be 'linear' or 'cubic'"),
        ("test.tta=maybe", "test.tta to be true or false, got test.tta=maybe"),
        ("test.flip=2", "test.flip to be true or false, got test.flip=2"),
        ("test.scales=[]", "test.scales to be a list of factors above 0 and at most 16, got test.scales=[]"),
        (
            "test.scales=1.5",
            "test.scales to be a list of factors above 0 and at most 16, got test.scales=1.5",
        ),
        (
            "test.scales=[1.0,0]",
            "test.scales to be a list of factors above 0 and at most 16, got test.scales=[1.0, 0]",
        ),
        (
            "test.scales=[.inf]",
            "test.scales to be a list of factors above 0 and at most 16, got test.scales=[inf]",
        ),
        ("test.average=mean", "test.average to be 'probabilities' or 'logits'"),
        ("test.scaling=input", "test.scaling to be 'file', 'network' or 'paddleseg'"),
        ("test.pad_size=9", "test.pad_size to be [height, width] in pixels or null, got test.pad_size=9"),
        ("test.final=area", "test.final to be 'linear' or 'cubic'"),
        ("test.pad_multiple=0", "test.pad_multiple to be greater than 0, got test.pad_multiple=0"),
        ("test.batch=0", "test.batch to be greater than 0, got test.batch=0"),
    ],
)
def test_a_value_that_cannot_be(words: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        inference_of(with_words(BASE, *words.split()), ())

"""How a network is tested, from the node `test` of a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from isaseg.data.resize import check_resize
from isaseg.errors import ConfigError
from isaseg.inference.apply import Inference

_LARGEST_SCALE = 16


def inference_of(cfg: DictConfig, flip_pairs: Sequence[tuple[int, int]]) -> Inference:
    """Return how the network is applied, from the node `test`.

    Raises:
        ConfigError: Naming the key that cannot be.
    """
    test: Any = OmegaConf.to_container(cfg.test, resolve=True)
    _check_test(test)
    slide, tta = test["mode"] == "slide", test["tta"]
    return Inference(
        resize=test["tta_resize"] if tta else test["resize"],
        interpolation=test["interpolation"],
        crop_size=tuple(test["crop_size"]) if slide else None,
        stride=tuple(test["stride"]) if slide and test["stride"] else None,
        scales=tuple(test["scales"]) if tta else (1.0,),
        flip=tta and test["flip"],
        flip_pairs=tuple(flip_pairs),
        average=test["average"],
        scaling=test["scaling"],
        pad_multiple=test["pad_multiple"],
        final=test["final"],
        batch=test["batch"],
    )


def _check_test(test: Mapping[str, Any]) -> None:
    for key, options in (
        ("mode", ("whole", "slide")),
        ("average", ("probabilities", "logits")),
        ("scaling", ("file", "network")),
        ("final", ("linear", "cubic")),
        ("interpolation", ("linear", "cubic")),
        ("tta", (True, False)),
        ("flip", (True, False)),
    ):
        if test[key] not in options:
            raise ConfigError(
                f"expected test.{key} to be one of {', '.join(map(str, options))}, got {test[key]}"
            )
    crop, stride, scales = test["crop_size"], test["stride"], test["scales"]
    for key in ("crop_size", "stride"):
        if test[key] is not None and not _is_size(test[key]):
            raise ConfigError(f"expected test.{key} as [height, width] in pixels, got {test[key]}")
    if test["mode"] == "slide" and crop is None:
        raise ConfigError("expected test.crop_size as [height, width] for test.mode=slide, got null")
    if test["mode"] == "slide" and stride and (stride[0] > crop[0] or stride[1] > crop[1]):
        raise ConfigError(
            f"expected test.stride of at most test.crop_size={crop}, got {stride}; larger ones leave gaps"
        )
    for key in ("resize", "tta_resize"):
        check_resize(test[key], f"test.{key}")
    if (
        not isinstance(scales, list)
        or not scales
        or not all(isinstance(s, int | float) and 0 < s <= _LARGEST_SCALE for s in scales)
    ):
        raise ConfigError(
            f"expected test.scales as a list of factors above 0 and at most {_LARGEST_SCALE}, got {scales}"
        )
    for key in ("pad_multiple", "batch"):
        if not isinstance(test[key], int) or test[key] < 1:
            raise ConfigError(f"expected test.{key} to be an integer of at least 1, got {test[key]}")


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)

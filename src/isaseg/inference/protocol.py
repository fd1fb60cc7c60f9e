"""How a network is tested, from the node `test` of a configuration."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt

from isaseg import config
from isaseg.data.resize import check_resize
from isaseg.errors import ConfigError
from isaseg.inference.apply import Inference

_Pixels = Annotated[
    tuple[PositiveInt, PositiveInt] | None, Field(description="[height, width] in pixels or null")
]
_OF = get_type_hints(Inference)
_KEYS: dict[str, Any] = {
    "mode": Literal["whole", "slide"],
    "crop_size": _Pixels,
    "stride": _Pixels,
    "interpolation": Literal["linear", "cubic"],
    "tta": bool,
    "scales": Annotated[
        list[Annotated[float, Field(gt=0, le=16)]],
        Field(min_length=1, description="a list of factors above 0 and at most 16"),
    ],
    "flip": bool,
    "average": _OF["average"],
    "scaling": _OF["scaling"],
    "pad_size": _Pixels,
    "pad_multiple": PositiveInt,
    "tta_pad_multiple": PositiveInt,
    "final": _OF["final"],
    "batch": PositiveInt,
}
_PLAIN = ("average", "scaling", "final", "batch")


def inference_of(cfg: DictConfig, flip_pairs: Sequence[tuple[int, int]]) -> Inference:
    """Return how the network is applied, from the node `test`.

    Raises:
        ConfigError: Naming the wrong key.
    """
    test: Any = OmegaConf.to_container(cfg.test, resolve=True)
    for key, annotation in _KEYS.items():
        config.check_value(f"test.{key}", test[key], annotation)
    for key in ("resize", "tta_resize"):
        check_resize(test[key], f"test.{key}")
    slide, tta, crop, stride = test["mode"] == "slide", test["tta"], test["crop_size"], test["stride"]
    if slide and crop is None:
        raise ConfigError("expected test.crop_size to be [height, width] for test.mode=slide, got null")
    if slide and stride and (stride[0] > crop[0] or stride[1] > crop[1]):
        raise ConfigError(
            f"expected test.stride of at most test.crop_size={crop}, got {stride}; larger ones leave gaps"
        )
    return Inference(
        resize=test["tta_resize"] if tta else test["resize"],
        interpolation=test["interpolation"],
        crop_size=tuple(crop) if slide else None,
        stride=tuple(stride) if slide and stride else None,
        scales=tuple(test["scales"]) if tta else (1.0,),
        flip=tta and test["flip"],
        flip_pairs=tuple(flip_pairs),
        pad_multiple=test["tta_pad_multiple" if tta else "pad_multiple"],
        pad_size=tuple(test["pad_size"]) if test["pad_size"] else None,
        **{key: test[key] for key in _PLAIN},
    )

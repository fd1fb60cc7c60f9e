"""timm's models: made by name, with weights from the hub or from a local file."""

import copy
import math
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import clean_state_dict, get_model_traits, group_parameters
from torch import Tensor, nn

from isaseg.errors import CheckpointError, ConfigError
from isaseg.files import sha256
from isaseg.models.tensor_files import load_file

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of which timm takes the first that is there
# openseg's ImageNet weights of its ResNet-101, trained by MIT CSAIL, and what their layers before the stages are in timm
_CSAIL_FILE = "resnet101-imagenet.pth"
_CSAIL_STEM = {
    "conv1": "conv1.0",
    "bn1": "conv1.1",
    "conv2": "conv1.3",
    "bn2": "conv1.4",
    "conv3": "conv1.6",
    "bn3": "bn1",
}
# How timm's transformers are told to take images of any size; Swin then shifts its windows in every stage, as in mmseg
_ANY_SIZE = ({"dynamic_img_size": True, "always_partition": True}, {"dynamic_img_size": True})


def create(
    name: str,
    out_indices: tuple[int, ...],
    pretrained: bool,
    weights: str | None,
    weights_sha256: str | None,
    args: dict[str, Any],
    is_bgr: bool = False,
) -> Any:
    """Return a timm model that gives feature maps; the arguments not named here are those of `Backbone`.

    Args:
        weights: As there; the tensors of MIT CSAIL's ResNet are renamed.
        args: Further arguments of the timm model.
        is_bgr: Whether the image is given as BGR with statistics other than timm's, which CSAIL's weights need.

    Raises:
        ConfigError: If timm has no such model, an argument does not fit it, or the weights cannot be loaded.
    """
    tensors = None if weights is None else _tensors(name, Path(weights).expanduser(), weights_sha256)
    if tensors is not None:
        if _is_csail(tensors):
            if not is_bgr:
                raise ConfigError(
                    f"expected weights that were trained with the input of {name}, got backbone.weights='{weights}' of "
                    "MIT CSAIL, which were trained with BGR images and means of their own; use backbone=resnet101_csail"
                )
            tensors = from_csail(tensors)
        pretrained, args["pretrained_cfg_overlay"] = True, {"state_dict": dict(tensors)}
    if not timm.is_model(name.split(".")[0]):
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"expected the name of a timm model, got backbone.name='{name}'; "
            f"similar: {', '.join(near) or 'none'}"
        )
    if pretrained and not args.keys() & {"pretrained_cfg", "pretrained_cfg_overlay"}:
        _check_hub(name, args.get("cache_dir"))
    try:
        model = _extractor(name, out_indices=out_indices, pretrained=pretrained, **args)
    except Exception as error:
        # timm fails with an empty assertion, or does not know the argument
        if args.get("output_stride") is not None and (not str(error) or "output_stride" in str(error)):
            raise ConfigError(
                f"expected an output stride that timm has for backbone.name='{name}' (8, 16 or 32 where it can be "
                f"dilated, null for the model as it is), got backbone.output_stride={args['output_stride']}"
            ) from error
        if not pretrained:
            raise ConfigError(
                f"timm could not build backbone.name='{name}' with {out_indices=} and {args}: {error}"
            ) from error
        raise _unloaded(name, f"{type(error).__name__}: {str(error)[:300]}", weights) from error
    if tensors is not None:
        model.pretrained_cfg.pop("state_dict", None)
        _check_loaded(model, name, str(weights), tensors)
    return model


def _check_hub(name: str, cache: str | None) -> None:
    """Raise unless the weights are in the cache of the hub, or the hub answers: timm would try again for a minute."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    repo = None if config is None else config.hf_hub_id
    if not repo or any(isinstance(try_to_load_from_cache(repo, file, cache), str) for file in _HUB_FILES):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo, _HUB_FILES[0]))  # without retries
    except HfHubHTTPError:  # an answer
        return
    except (
        Exception
    ) as error:  # of the system or of an HTTP library, which one depends on the version of the hub's
        said = shorten(str(error).partition("\n")[0].rstrip(". "), 200)
        raise _unloaded(name, f"the hub, {constants.ENDPOINT}, cannot be reached ({said})", None) from error


def _extractor(name: str, **args: Any) -> Any:
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, features_only=True, **{**any_size, **args})
        except TypeError as error:  # at once, from families without these arguments
            if not any(f"'{key}'" in str(error) for key in any_size):
                raise
    return timm.create_model(name, features_only=True, **args)


_multiples: dict[str, int] = {}


def input_multiple(model: Any, name: str, made_of: str) -> int:
    """Return what the sides of an image must be multiples of: 1, the patch, all strides, or all strides and a window.

    timm does not say it of every family, so it is tried, on the meta device, where nothing is computed: maps must have
    the channels and strides that timm says. Models for which `made_of` is equal are tried once.

    Raises:
        ConfigError: If the model takes images of a single size, or its maps are others than timm says.
    """
    if made_of in _multiples:
        return _multiples[made_of]
    trial = copy.deepcopy(model).to("meta").eval()
    info = model.feature_info
    strides: list[int] = info.reduction(list(range(len(info))))
    is_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    claimed = list(zip(info.channels(), info.reduction(), strict=True))
    size: tuple[int, int] = get_model_traits(model)["img_size"] or model.pretrained_cfg["input_size"][1:]
    why = f"needs exactly {size[0]}x{size[1]} pixels"
    for multiple in sorted({1, min(strides), max(strides), math.lcm(*size)}):
        sides = 97 * multiple, 131 * multiple
        try:
            with torch.no_grad():
                maps = [
                    m.permute(0, 3, 1, 2) if is_last else m
                    for m in trial(torch.empty(1, 3, *sides, device="meta"))
                ]
        except Exception:  # whatever a layer raises for a size that it cannot take
            continue
        # some layers silently take any size and reshape it to their own; unpadded convolutions lose a few rows
        if len(maps) == len(claimed) and all(
            m.shape[1] == channels
            and all(-4 <= got - n // stride <= 1 for got, n in zip(m.shape[2:], sides, strict=True))
            for m, (channels, stride) in zip(maps, claimed, strict=True)
        ):
            _multiples[made_of] = multiple
            return multiple
        why = f"gives maps that are not those of {claimed} (channels, stride), which timm says"
    raise ConfigError(
        f"expected a backbone for images of any size, got backbone.name='{name}', which {why}; choose another model"
    )


def depths(model: nn.Module, name: str, coarse: bool = True) -> dict[str, tuple[str, int]]:
    """Return, for each parameter of a model made by `create`, its name in timm's plain model and its depth.

    The stem has depth 0; stages count from 1, or blocks if not `coarse`, as timm groups them for layer-wise decay.

    Raises:
        ConfigError: If timm does not group them.
    """
    whole = _whole(name)
    if not hasattr(whole, "group_matcher"):
        raise ConfigError(
            f"expected a model whose layers timm groups, got backbone.name='{name}'; "
            "set backbone.freeze=[] and optim.layer_decay=null"
        )
    depth = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
    names = {own.replace(".", "_", 1): own for own in depth} | {own: own for own in depth}
    found = {}
    for key, _ in model.named_parameters():
        short = key.removeprefix("model.").removeprefix("body.")  # timm's wrappers
        own = names.get(short, short)
        found[key] = own, depth.get(own, max(depth.values()))
    return found


def undecayed(model: nn.Module, name: str) -> set[str]:
    """Return the parameters of a model made by `create` that timm lists as not to decay, e.g. position embeddings."""
    patterns: set[str] = getattr(_whole(name), "no_weight_decay", set)()
    if not patterns:
        return set()
    return {key for key, (own, _) in depths(model, name).items() if any(fnmatch(own, p) for p in patterns)}


@cache
def _whole(name: str) -> Any:
    """Return timm's plain model of that name on the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return timm.create_model(name)


def from_csail(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of MIT CSAIL's deep-stem ResNet under the names of timm's `resnet101s`."""
    return {
        ".".join([_CSAIL_STEM.get(own, own), *rest]): tensors[n]
        for n in tensors
        for own, *rest in [n.split(".")]
    }


def _is_csail(tensors: dict[str, Tensor]) -> bool:
    return {"conv3.weight", "bn3.weight", "layer1.0.conv1.weight", "fc.weight"} <= tensors.keys()


def _tensors(name: str, path: Path, expected: str | None) -> dict[str, Tensor]:
    """Return the tensors of a weights file or a training checkpoint of timm."""
    if not path.is_file():
        where = (
            "; openseg's GETTING_STARTED.md links it, at github.com/hsfzxjy/models.storage in the release "
            "openseg-pytorch-pretrained, and backbone=resnet101s_d8 does with timm's weights"
        )
        raise ConfigError(
            f"expected a file of weights, got backbone.weights='{path}', which does not exist"
            + (where if path.name == _CSAIL_FILE else "")
        )
    if expected is not None and (found := sha256(path)) != expected.lower():
        raise ConfigError(
            f"expected backbone.weights='{path}' with the SHA-256 {expected}, got {found}; fetch the file again, or "
            "set backbone.weights_sha256=null"
        )
    try:
        content = load_file(path)
    except CheckpointError as error:
        raise _unloaded(name, str(error), str(path)) from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise _unloaded(name, "it holds more than named tensors", str(path))
    if not content:  # timm would look for weights on the network
        raise _unloaded(name, "it holds no tensor", str(path))
    return dict(clean_state_dict(content))


def _unloaded(name: str, said: str, weights: str | None) -> ConfigError:
    of = "" if weights is None else f" from backbone.weights='{weights}'"
    return ConfigError(
        f"could not load the weights of backbone.name='{name}'{of}: {said.rstrip('. ')}; "
        "where there is no network, download them elsewhere and set backbone.weights=FILE "
        "(safetensors or pth, as timm has them), or train from scratch with backbone.pretrained=false"
    )


def _check_loaded(model: nn.Module, name: str, weights: str, tensors: dict[str, Tensor]) -> None:
    """Raise unless the model has the file's tensors. timm itself accepts any file for a feature extractor.

    Tensors are recognised by size and sum, because timm may rename and reshape them.
    """

    def mark(tensor: Tensor) -> tuple[int, float]:
        return tensor.numel(), round(float(tensor.double().abs().sum()), 4)

    found = {mark(tensor) for tensor in tensors.values()}
    parameters = list(model.parameters())
    arrived = sum(mark(p.detach()) in found for p in parameters)
    if arrived < 0.9 * len(parameters):
        raise ConfigError(
            f"expected the weights of {name}, got backbone.weights='{weights}', which holds {arrived} of the "
            f"model's {len(parameters)} parameters; set backbone.name to the model that the file belongs to"
        )

"""Any timm model as a list of feature maps. Its input normalisation and memory layout are handled here."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import clean_state_dict
from torch import Tensor, nn

from isaseg.errors import CheckpointError, ConfigError
from isaseg.files import sha256
from isaseg.models.tensor_files import load_file


class Backbone(nn.Module):
    """A timm `features_only` model: uint8 RGB in, a list of (B, C_i, H_i, W_i) feature maps out.

    The image is normalised with the mean and std that timm's weights were trained with, unless others are given.

    Args:
        name: timm model name, e.g. `resnet101c`.
        output_stride: Dilate the last stages to keep this stride (8 in ISANet); None changes nothing.
        out_indices: Which of timm's feature maps to return, in order; negative numbers count from the end. The last one
            feeds the context head, the one before it the auxiliary head.
        pretrained: Download timm's weights from the hub.
        weights: A local file with timm weights, used instead of the hub.
        weights_sha256: The SHA-256 this file must have; None accepts any.
        fuse: Resize all maps to the size of the first and concatenate them into one, as HRNet does.
        input_multiple: Pad the normalised image at the right and bottom to a multiple of this (32 for HRNet).
        model_args: Further arguments of the timm model, e.g. `feature_location`.
        ceil_pool: Round the size up in the stem's pooling, as openseg's ResNets do: 1024 / 16 gives 65 columns, not 64.
        bgr: Reorder the channels to blue, green, red for the network, as in openseg. The image itself is RGB.
        mean: Mean of each channel in the network's order, 0 to 255; None takes timm's.
        std: Standard deviation of each channel, likewise.

    Raises:
        ConfigError: If timm has no such model, the weights cannot be loaded, or an argument does not fit the model.

    Attributes:
        channels: C_i of each map that `forward` returns.
        strides: Stride of each map.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        output_stride: int | None = None,
        out_indices: Sequence[int] = (-2, -1),
        pretrained: bool = False,
        weights: str | None = None,
        weights_sha256: str | None = None,
        fuse: bool = False,
        input_multiple: int = 1,
        model_args: Mapping[str, Any] | None = None,
        ceil_pool: bool = False,
        bgr: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        args = dict(model_args or {})
        if output_stride is not None:
            args["output_stride"] = output_stride
        if input_multiple < 1:
            raise ConfigError(f"expected backbone.input_multiple of at least 1, got {input_multiple}")
        if not out_indices:
            raise ConfigError("expected backbone.out_indices to name at least one feature map, got none")
        tensors = None if weights is None else _tensors(name, Path(weights), weights_sha256)
        self.model = _create(name, tuple(out_indices), pretrained, weights, tensors, args)
        if ceil_pool:
            _round_up(self.model, name)
        info: Any = self.model.feature_info
        channels, strides = list(info.channels()), list(info.reduction())
        if len(set(info.module_name())) != len(channels):  # timm returns a repeated map once
            raise ConfigError(f"expected backbone.out_indices to name each map once, got {list(out_indices)}")
        self.channels = [sum(channels)] if fuse else channels
        self.strides = strides[:1] if fuse else strides
        self.fuse = fuse
        self.input_multiple = input_multiple
        self._timm_strides = strides
        self._channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self.bgr = bgr
        source: Any = self.model.pretrained_cfg
        self.register_buffer("mean", _stat("mean", mean, source, (0.485, 0.456, 0.406)), persistent=False)
        self.register_buffer("std", _stat("std", std, source, (0.229, 0.224, 0.225)), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of `image`, RGB uint8 (B, 3, H, W), or of the float image that `normalise` returns."""
        x = image if image.is_floating_point() else self.normalise(image)
        # 1.5 times as fast on CPUs, and best for bf16 on GPUs
        x = x.contiguous(memory_format=torch.channels_last)
        height, width = x.shape[-2:]
        # no negative numbers are divided here or below: ONNX would round the quotient towards zero
        multiple = self.input_multiple
        pad_h, pad_w = ((n + multiple - 1) // multiple * multiple - n for n in (height, width))
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        maps: list[Tensor] = self.model(x)
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        if pad_h or pad_w:
            maps = [
                m[..., : (height + s - 1) // s, : (width + s - 1) // s]
                for m, s in zip(maps, self._timm_strides, strict=True)
            ]
        if self.fuse:
            size = maps[0].shape[-2:]
            rest = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps[1:]]
            maps = [torch.cat([maps[0], *rest], dim=1)]
        return maps

    def normalise(self, image: Tensor) -> Tensor:
        """Return RGB uint8 (B, 3, H, W) as the network's input: float, normalised, channels in the network's order."""
        x = image.flip(1) if self.bgr else image
        x = x.contiguous()  # loaders return channels-last memory
        return (x.to(self.mean.dtype) - self.mean) / self.std


def _stat(
    key: str, given: Sequence[float] | None, source: Mapping[str, Any], fallback: Sequence[float]
) -> Tensor:
    if given is None:
        return torch.tensor(source.get(key, fallback), dtype=torch.float32).view(1, 3, 1, 1) * 255
    if len(given) != 3 or (key == "std" and min(given) <= 0):
        raise ConfigError(
            f"expected backbone.{key} as three numbers of 0 to 255, of std above 0, got {given}"
        )
    return torch.tensor(given, dtype=torch.float32).view(1, 3, 1, 1)


def _round_up(model: nn.Module, name: str) -> None:
    pool = getattr(model, "maxpool", None)
    if not isinstance(pool, nn.MaxPool2d):
        raise ConfigError(
            f"expected a ResNet with max pooling in its stem for backbone.ceil_pool, got backbone.name='{name}'; "
            "set backbone.ceil_pool=false"
        )
    pool.ceil_mode = True


def _create(
    name: str,
    out_indices: tuple[int, ...],
    pretrained: bool,
    weights: str | None,
    tensors: dict[str, Tensor] | None,
    args: dict[str, Any],
) -> nn.Module:
    if tensors is not None:
        pretrained, args["pretrained_cfg_overlay"] = True, {"state_dict": dict(tensors)}
    if not timm.is_model(name.split(".")[0]):
        near = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"expected the name of a timm model, got backbone.name='{name}'; "
            f"similar: {', '.join(near) or 'none'}"
        )
    try:
        model: nn.Module = timm.create_model(
            name, features_only=True, out_indices=out_indices, pretrained=pretrained, **args
        )
    except Exception as error:
        if not pretrained:
            raise ConfigError(
                f"timm could not build backbone.name='{name}' with {out_indices=} and {args}: {error}"
            ) from error
        raise _unloaded(name, f"{type(error).__name__}: {str(error)[:300]}", weights) from error
    if tensors is not None:
        model.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator,union-attr]
        _check_loaded(model, name, str(weights), tensors)
    return model


def _tensors(name: str, path: Path, expected: str | None) -> dict[str, Tensor]:
    """Return the tensors of a weights file or a training checkpoint of timm."""
    if not path.is_file():
        raise ConfigError(
            f"expected a file of timm weights, got backbone.weights='{path}', which does not exist"
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
        f"could not load the weights of backbone.name='{name}'{of}: {said}. "
        "Without network, fetch them elsewhere and set backbone.weights=FILE "
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

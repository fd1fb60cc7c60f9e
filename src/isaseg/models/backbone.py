"""Any timm model as a list of feature maps. Its input normalisation and memory layout are handled here."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.errors import ConfigError
from isaseg.models.timm_models import create, depths, undecayed
from isaseg.models.timm_models import input_multiple as needed_multiple


class Backbone(nn.Module):
    """A timm `features_only` model: uint8 RGB in, a list of (B, C_i, H_i, W_i) feature maps out.

    The image is normalised with the mean and std that timm's weights were trained with, unless others are given.

    Args:
        name: timm model name, e.g. `resnet101c`.
        output_stride: Dilate the last stages to keep this stride (8 in ISANet); None changes nothing.
        out_indices: Which of timm's feature maps to return, in order; negative numbers count from the end. The last one
            feeds the context head, the one before it the auxiliary head.
        pretrained: Download timm's weights from the hub.
        weights: A local file with timm weights, used instead of the hub; or MIT CSAIL's ResNet-101, as openseg uses it,
            with `bgr`, `mean` and `std` as it was trained.
        weights_sha256: The SHA-256 this file must have; None accepts any.
        fuse: Resize all maps to the size of the first and concatenate them into one, as HRNet does.
        align_corners: How `fuse` resizes: False in mmsegmentation unless its head says otherwise, True in openseg.
        input_multiple: Pad the normalised image at the right and bottom to a multiple of this. What the model itself
            needs, for its patch, strides or windows, is found without it.
        model_args: Further arguments of the timm model, e.g. `feature_location`.
        ceil_pool: Round the size up in the stem's pooling, as openseg's ResNets do: 1024 / 16 gives 65 columns, not 64.
        bgr: Reorder the channels to blue, green, red for the network, as in openseg. The image itself is RGB.
        mean: Mean of each channel in the network's order, 0 to 255; None takes timm's.
        std: Standard deviation of each channel, likewise.
        freeze: What is not trained: `stem`, numbers of stages from 1, or names of timm's modules, e.g. `layer1`. These
            parts stay in evaluation mode, as mmsegmentation's `frozen_stages` do.
        norm_eval: Batch norms keep their statistics in training; their weights are trained.
        bilinear_exchange: In an HRNet, the branches are resized bilinearly with aligned corners wherever they are added,
            as in openseg; timm takes the nearest value.
        full_dilation: In a ResNet-D, the first block of a dilated stage has the stage's dilation, and its shortcut does
            not pool, as in PaddleSeg's ResNet-vd; timm halves the dilation there, and pools.

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
        freeze: Sequence[int | str] = (),
        norm_eval: bool = False,
        align_corners: bool = False,
        bilinear_exchange: bool = False,
        full_dilation: bool = False,
    ) -> None:
        super().__init__()
        args = dict(model_args or {})
        if output_stride is not None:
            args["output_stride"] = output_stride
        if input_multiple < 1:
            raise ConfigError(f"expected backbone.input_multiple of at least 1, got {input_multiple}")
        if not out_indices:
            raise ConfigError("expected backbone.out_indices to name at least one feature map, got none")
        made_of = repr((name, list(out_indices), ceil_pool, sorted(args.items())))
        is_bgr = bgr and mean is not None and std is not None
        self.model = create(name, tuple(out_indices), pretrained, weights, weights_sha256, args, is_bgr)
        if ceil_pool:
            _round_up(self.model, name)
        if bilinear_exchange:
            _exchange_bilinearly(self.model, name)
        if full_dilation:
            _dilate_fully(self.model, name)
        info: Any = self.model.feature_info
        channels, strides = list(info.channels()), list(info.reduction())
        if len(set(info.module_name())) != len(channels):  # timm returns a repeated map once
            raise ConfigError(f"expected backbone.out_indices to name each map once, got {list(out_indices)}")
        self.channels = [sum(channels)] if fuse else channels
        self.strides = strides[:1] if fuse else strides
        self.fuse, self.align_corners = fuse, align_corners
        self.input_multiple = math.lcm(input_multiple, needed_multiple(self.model, name, made_of))
        self._timm_strides = strides
        self._channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self.bgr = bgr
        source: Any = self.model.pretrained_cfg
        self.register_buffer("mean", _stat("mean", mean, source, (0.485, 0.456, 0.406)), persistent=False)
        self.register_buffer("std", _stat("std", std, source, (0.229, 0.224, 0.225)), persistent=False)
        self._name = name
        self.norm_eval = norm_eval
        _freeze(self.model, name, freeze)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen and, with `norm_eval`, norms with statistics stay in evaluation mode."""
        super().train(mode)
        for part in self.model.modules():
            weights = list(part.parameters())
            is_frozen = weights and not any(weight.requires_grad for weight in weights)
            if is_frozen or (self.norm_eval and getattr(part, "running_var", None) is not None):
                part.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps, floating point (B, C_i, H_i, W_i), of `image`, RGB uint8 (B, 3, H, W).

        Raises:
            ValueError: If the image is of another type or shape, e.g. already normalised.
        """
        return self.features(self.normalise(image))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of an image that is normalised: what `normalise` returns, perhaps resized or padded.

        Raises:
            ValueError: If `x` is not floating point.
        """
        if not x.is_floating_point():
            raise ValueError(
                f"expected what `normalise` returns, floating point (B, 3, H, W), got {x.dtype} {tuple(x.shape)}; give "
                "images of uint8 to the backbone itself"
            )
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
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if pad_h or pad_w:
            maps = [
                m[..., : (height + s - 1) // s, : (width + s - 1) // s]
                for m, s in zip(maps, self._timm_strides, strict=True)
            ]
        if self.fuse:
            size = maps[0].shape[-2:]
            resize = partial(F.interpolate, size=size, mode="bilinear", align_corners=self.align_corners)
            maps = [torch.cat([maps[0], *map(resize, maps[1:])], dim=1)]
        return maps

    def layers_above(self) -> dict[str, int]:
        """Return how many layers, as timm groups them, lie above each parameter, by its name; the head counts as one.

        Raises:
            ConfigError: If timm does not group the layers of this model.
        """
        found = {
            f"model.{key}": depth for key, (_, depth) in depths(self.model, self._name, coarse=False).items()
        }
        return {key: max(found.values()) + 1 - depth for key, depth in found.items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that should not decay, by timm's list for the model."""
        return {f"model.{key}" for key in undecayed(self.model, self._name)}

    def normalise(self, image: Tensor) -> Tensor:
        """Return RGB uint8 (B, 3, H, W) as the network's input: float, normalised, channels in the network's order.

        The result is in channels-last memory, as loaders return images and as the model wants them.

        Raises:
            ValueError: If the image is of another type or shape.
        """
        check_image(image)
        x = image.flip(1) if self.bgr else image
        if torch.compiler.is_compiling():  # and fuses it
            return (x.to(self.mean.dtype) - self.mean) / self.std
        x_BHWC = x.permute(0, 2, 3, 1).to(self.mean.dtype).contiguous()
        # a row of pixels at once, because three channels are few for the innermost loop of a CPU
        mean, std = (each.flatten().repeat(x_BHWC.shape[2]) for each in (self.mean, self.std))
        return x_BHWC.flatten(2).sub_(mean).div_(std).view(x_BHWC.shape).permute(0, 3, 1, 2)


def check_image(image: Tensor) -> None:
    """Check that an image is RGB uint8 (B, 3, H, W): the values of a normalised one would be taken for others.

    Raises:
        ValueError: If it is not.
    """
    if image.dtype is not torch.uint8 or image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(
            f"expected RGB images as uint8 (B, 3, H, W) with values of 0 to 255, got {image.dtype} {tuple(image.shape)}; "
            "do not scale or normalise them, the network does it (or see Segmenter.coarse)"
        )


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


def _freeze(model: nn.Module, name: str, parts: Sequence[int | str]) -> None:
    known = depths(model, name) if parts else {}
    for part in parts:
        chosen = [
            key
            for key, (own, depth) in known.items()
            if part == (depth or "stem") or f"{own}.".startswith(f"{part}.")
        ]
        if not chosen:
            last = max(depth for _, depth in known.values())
            top = list(dict.fromkeys(own.split(".")[0] for own, _ in known.values()))
            near = get_close_matches(str(part), ["stem", *top], n=1)
            raise ConfigError(
                f"expected backbone.freeze to hold stem, numbers of stages from 1 to {last} or names of modules "
                f"({', '.join(top)}), got {part!r}" + "".join(f"; did you mean '{it}'?" for it in near)
            )
        for key in chosen:
            model.get_parameter(key).requires_grad_(False)


def _round_up(model: nn.Module, name: str) -> None:
    pool = getattr(model, "maxpool", None)
    if not isinstance(pool, nn.MaxPool2d):
        raise ConfigError(
            f"expected a ResNet with max pooling in its stem for backbone.ceil_pool, got backbone.name='{name}'; "
            "set backbone.ceil_pool=false"
        )
    pool.ceil_mode = True


def _exchange_bilinearly(model: nn.Module, name: str) -> None:
    """Let the branches of an HRNet be resized bilinearly wherever timm takes the nearest value."""
    found = [path for path, part in model.named_modules() if isinstance(part, nn.Upsample)]
    if not found:
        raise ConfigError(
            f"expected an HRNet for backbone.bilinear_exchange, got backbone.name='{name}'; "
            "set backbone.bilinear_exchange=false"
        )
    for path in found:
        factor: Any = model.get_submodule(path).scale_factor
        model.set_submodule(path, nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True))


def _dilate_fully(model: Any, name: str) -> None:
    """Give the first block of each dilated stage the dilation of the others, and a shortcut that does not pool."""
    stages = [list(part) for key, part in model.named_children() if key.startswith("layer")]
    dilated = [stage for stage in stages if getattr(stage[-1].conv2, "dilation", (1, 1)) != (1, 1)]
    if not dilated or not all(isinstance(stage[0].downsample[0], nn.AvgPool2d) for stage in dilated):
        raise ConfigError(
            f"expected a dilated ResNet-D for backbone.full_dilation, got backbone.name='{name}'; "
            "set backbone.full_dilation=false, or e.g. backbone.output_stride=8"
        )
    for first, *_, last in dilated:
        first.conv2.dilation = first.conv2.padding = last.conv2.dilation
        first.downsample[0] = nn.Identity()

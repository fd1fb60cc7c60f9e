"""What reaches a pixel: field of view, attention support, and the group accuracy that they allow on Lamps and Cards.

All of it is measured on the modules, made positive: there is no formula that could drift from the code. The bound assumes
a perfect decision wherever the cue is in reach (the lit lamp; on Cards the card of the object's own hue), and a guess
among three groups elsewhere. Imports torch.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from isaseg import config
from isaseg.console import counted
from isaseg.data.sets.cards import CARD, Cards
from isaseg.data.sets.lamps import LAMP
from isaseg.models.backbone import Backbone
from isaseg.models.layers import conv_norm_act
from isaseg.report.rows import Comparison

GROUPS = 3  # lamp colours, frames of cards
_CHANNELS = 16  # half of it, the keys, must be divisible by the heads of attention and the groups of CGNL


class Scenes(NamedTuple):
    """Labelled scenes, and what can be seen in them of the K cues that a scene may have.

    Attributes:
        masks: Classes, uint8 (N, H, W); the objects have the classes 1 to 6.
        far: The pixels far from their cue, bool (N, H, W).
        seen: The cells that see each cue, bool (N, K, h, w).
        cue: Which of the K cues decides the class of an object's pixel, (N, H, W).
    """

    masks: Tensor
    far: Tensor
    seen: Tensor
    cue: Tensor


class Bound(NamedTuple):
    """The highest group accuracy that geometry allows, as fractions: over all object pixels, and over the far ones."""

    group_acc: float
    group_acc_far: float


def cells_that_see(stages: Sequence[nn.Module], cues: Tensor) -> Tensor:
    """Return which cells have a cue in their field of view.

    With positive weights and no bias a feature is positive exactly where a cue is in its field of view.

    Args:
        stages: Modules from image to features, one after the other, e.g. the backbone and the first layer of the head.
            If one returns a list of maps, the next takes the last.
        cues: bool (N, H, W), the pixels that hold a cue.

    Returns:
        bool (N, H / stride, W / stride).
    """
    # in float32 the border of a large field of view underflows
    x = cues[:, None].expand(-1, 3, -1, -1).double()
    with torch.no_grad():
        for stage in stages:
            network = positive_copy(stage, torch.float64)
            out = network.features(x) if isinstance(network, Backbone) else network(x)  # cues are no pixels
            x = out[-1] if isinstance(out, list | tuple) else out
    return x.sum(1) > 0


def attention_support(module: nn.Module, channels: int, height: int, width: int) -> Tensor:
    """Return which input cells (columns) each output cell (row) of a context module depends on.

    The result is bool (N, N) with N = height * width, row-major; the input of the module has `channels` channels.
    """
    positive = positive_copy(module, torch.float32)  # all terms are positive, so nothing cancels
    cells = height * width
    x_1CHW = _positive((1, channels, height, width), torch.Generator().manual_seed(1), torch.float32)
    chunk = max(1, min(cells, 2**16 // cells))
    rows = []
    for first in range(0, cells, chunk):
        count = min(chunk, cells - first)
        x = x_1CHW.repeat(count, 1, 1, 1).requires_grad_()  # one copy for each output cell of the chunk
        out = positive(x).sum(1).flatten(1)  # (count, N)
        (gradient,) = torch.autograd.grad(out[:, first : first + count].diagonal().sum(), x)
        rows.append(gradient.abs().sum(1).flatten(1) > 0)
    return torch.cat(rows)


def group_accuracy_bound(support: Tensor, scenes: Scenes) -> Bound:
    """Return the group accuracy that no model of this reach can exceed, up to luck.

    An object pixel can be decided if a pixel of its cue lies in the field of view of a cell on which one of the cells
    depends from which bilinear upsampling makes this pixel. It then counts 1, otherwise 1/3.

    Args:
        support: bool (C, C) of C = h w cells, from `attention_support`. Each cell depends on itself as well, because the
            head concatenates the input of the context module.
        scenes: The scenes.
    """
    masks, far, seen, cue = scenes
    depends = (support | torch.eye(len(support), dtype=torch.bool)).float()
    informed = (seen.flatten(2).float() @ depends.T).view(seen.shape)
    objects = (masks > 0) & (masks < LAMP)
    scores = []
    # (K, h, w), (H, W): one scene at a time, which is small
    for cells, own in zip(informed, cue, strict=True):
        # a positive weight of any of the neighbouring cells suffices
        up = F.interpolate(cells[None], own.shape, mode="bilinear", align_corners=False)[0]
        scores.append(torch.where(up.gather(0, own[None].long())[0] > 0, 1.0, 1 / GROUPS).double())
    score = torch.stack(scores)
    return Bound(score[objects].mean().item(), score[objects & far].mean().item())


def with_bounds(comparison: Comparison) -> Comparison:
    """Return the comparison with the bounds of the rows on Lamps and Cards; each takes some seconds."""
    known: dict[str, Scenes] = {}  # most rows have the same
    bounds: dict[str, Bound] = {}
    with counted("computing bounds", len(comparison.rows)) as advance:
        for row in comparison.rows:
            cfg = row.runs[0].config
            if cfg is not None and cfg.data.name in ("lamps", "cards"):
                parts = (cfg.backbone, cfg.head, cfg.data.source)
                key = config.digest([OmegaConf.to_container(part) for part in parts])
                scenes = known[key] = known.get(key) or _scenes(cfg)
                support = attention_support(*_module(cfg), *scenes.seen.shape[2:])
                bounds[row.label] = group_accuracy_bound(support, scenes)
            advance()
    return replace(comparison, bounds=bounds)


def _module(cfg: DictConfig) -> tuple[nn.Module, int]:
    """Return the context module of a configuration, narrow if it can be, and its channels."""
    make = config.build(cfg.attention, "attention")
    try:
        return make(_CHANNELS), _CHANNELS
    except ValueError:  # of more heads or groups
        return make(cfg.head.channels), cfg.head.channels


def _scenes(cfg: DictConfig) -> Scenes:
    """Return the validation scenes of a configuration."""
    source = config.build(cfg.data, "data").source("val")
    loaded = [source.load(i) for i in range(len(source))]
    masks, far = (torch.from_numpy(np.stack([scene[part] for scene in loaded])) for part in (1, 2))
    if isinstance(source, Cards):
        cue = torch.from_numpy(np.stack([source.cues(i) for i in range(len(source))]))
        places = [(masks == CARD) & (cue == k) for k in range(int(cue.max()) + 1)]
    else:
        cue, places = torch.zeros_like(masks), [masks == LAMP]
    backbone = config.build(cfg.backbone, "backbone")
    reduce = conv_norm_act(backbone.channels[-1], cfg.head.channels, 3)  # the first layer of ContextHead
    seen = torch.stack([cells_that_see([backbone, reduce], place) for place in places], dim=1)
    return Scenes(masks, far, seen, cue)


def _positive(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=dtype) + 0.5


def positive_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a module in which a gradient passes wherever one can pass.

    Weights are positive and random, norms neutral, biases 0 and gates 1: every ReLU is active and nothing cancels.
    Max pooling, which passes the gradient of a single pixel, becomes average pooling of the same windows.

    Args:
        module: Is left as it was.
        dtype: Of the copy.
    """
    module = copy.deepcopy(module).to(dtype).eval()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(parent, name, pool)
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.reset_running_stats()
                child.reset_parameters()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.copy_(_positive(parameter.shape, generator, dtype) / parameter[0].numel())
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)  # CCNet's gate starts at 0, some norms too
    return module

"""The group accuracy that geometry allows the rows on Lamps, from their configurations alone. Imports torch."""

from dataclasses import replace

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from isaseg import config
from isaseg.console import counted
from isaseg.models.layers import conv_norm_act
from isaseg.report.reach import LAMP, Bound, attention_support, cells_that_see, group_accuracy_bound
from isaseg.report.rows import Comparison

_CHANNELS = 4  # enough to see which cells depend on which


def with_bounds(comparison: Comparison) -> Comparison:
    """Return the comparison with the bounds of the rows on Lamps; each takes some seconds."""
    scenes: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # most rows have the same
    bounds: dict[str, Bound] = {}
    with counted("computing bounds", len(comparison.rows)) as advance:
        for row in comparison.rows:
            cfg = row.runs[0].config
            if cfg is not None and cfg.data.name == "lamps":
                parts = (cfg.backbone, cfg.head, cfg.data.source)
                key = config.digest([OmegaConf.to_container(part) for part in parts])
                masks, far, seen = scenes[key] = scenes.get(key) or _scenes(cfg)
                module = config.build(cfg.attention, "attention")(_CHANNELS)
                support = attention_support(module, *seen.shape[1:])
                bounds[row.label] = group_accuracy_bound(support, seen, masks, far)
            advance()
    return replace(comparison, bounds=bounds)


def _scenes(cfg: DictConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masks (N, H, W) of the validation scenes, which pixels are far, and which cells see the lamp."""
    source = config.build(cfg.data, "data").source("val")
    scenes = [source.load(i) for i in range(len(source))]
    masks, far = (torch.from_numpy(np.stack([scene[part] for scene in scenes])) for part in (1, 2))
    backbone = config.build(cfg.backbone, "backbone")
    reduce = conv_norm_act(backbone.channels[-1], cfg.head.channels, 3)  # the first layer of ContextHead
    return masks, far, cells_that_see([backbone, reduce], masks == LAMP)

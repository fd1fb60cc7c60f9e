"""The group accuracy that geometry allows the rows on Lamps, from their configurations alone. Imports torch."""

from dataclasses import replace

from omegaconf import DictConfig

from isaseg import config
from isaseg.console import counted
from isaseg.models.block import conv_norm_act
from isaseg.report.reach import Bound, attention_support, field_of_view, group_accuracy_bound
from isaseg.report.rows import Comparison

_CHANNELS = 4  # enough to see which cells depend on which


def with_bounds(comparison: Comparison) -> Comparison:
    """Return the comparison with the bounds of the rows on Lamps; each takes some seconds."""
    bounds = {}
    with counted("computing bounds", len(comparison.rows)) as advance:
        for row in comparison.rows:
            cfg = row.runs[0].config
            if cfg is not None and cfg.data.name == "lamps":
                bounds[row.label] = lamps_bound(cfg)
            advance()
    return replace(comparison, bounds=bounds)


def lamps_bound(cfg: DictConfig) -> Bound:
    """Return the bound of a run on Lamps, over the scenes on which it is validated."""
    make_attention = config.build(cfg.attention, "attention")
    backbone = config.build(cfg.backbone, "backbone")
    reduce = conv_norm_act(backbone.channels[-1], cfg.head.channels, 3)  # the first layer of ContextHead
    fov = field_of_view([backbone, reduce])
    height, width = (-(-side // fov.stride) for side in cfg.data.crop_size)
    support = attention_support(make_attention(_CHANNELS), height, width)
    source = config.build(cfg.data, "data").source("val")
    return group_accuracy_bound(support, fov, (source.load(i)[1:3] for i in range(len(source))))

"""What to change if a training step does not fit into memory, computed from its configuration."""

from omegaconf import DictConfig

from isaseg import config


def advice(cfg: DictConfig, world_size: int) -> str:
    """Return what to change in a run whose step needs too much memory, the best first."""
    twice = 2 * cfg.trainer.accumulate_grad_batches
    knobs = []
    if cfg.data.get("batch_size", 1) % (world_size * twice) == 0:
        knobs.append(f"trainer.accumulate_grad_batches={twice} (the same samples a step)")
    if str(cfg.trainer.precision).startswith("32"):
        knobs.append("trainer.precision=bf16-mixed")
    if cfg.attention.get("recompute") is False:
        knobs.append("attention.recompute=true")
    if config.attention_label(cfg) == "dense":
        knobs.append("attention=isa")
    knobs.append(f"a data.crop_size below {list(cfg.data.crop_size)}")
    return f"Change, in this order: {', '.join(knobs)}"

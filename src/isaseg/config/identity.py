"""What a run is: its identity, its name and its folder."""

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from isaseg.config.composition import conf_dir

# Callbacks that only watch; any other one may change what a run computes.
_PASSIVE_CALLBACKS = {
    "isaseg.training.callbacks.ValidationPictures",
    "isaseg.training.step_profile.Profile",
    "lightning.pytorch.callbacks.RichModelSummary",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.DeviceStatsMonitor",
}

# Keys that say where and how a run is executed, not what it computes: they do not change its name.
_NOT_IDENTITY = (
    "resume",
    "stale",
    "init_from",  # by its content
    "check_data",
    "score_test",
    "checkpoint_every_n_steps",
    "output_dir",
    "pretrained",  # counted as backbone.pretrained
    "run_dir",
    "logger",
    "pictures",
    "data.root",
    "data.source.root",
    "data.num_workers",
    "data.val_batch_size",
    "data.timeout",
    "data.cache",
    "data.strict_size",
    "recipe",  # its values are counted under optim and loss
    "test",  # of evaluate.py alone
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.num_nodes",
    "trainer.log_every_n_steps",
    "attention.recompute",
    "attention.label",
)


def run_dir(cfg: DictConfig) -> Path:
    """Return the run's folder, the same for the same configuration and seed."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    return Path(cfg.output_dir) / safe_name(cfg.name) / run_name(cfg)


def data_dir(cfg: DictConfig) -> Path:
    """Return the folder of the report on a data set."""
    return Path(cfg.output_dir) / "data" / safe_name(cfg.data.name)


def run_name(cfg: DictConfig) -> str:
    """Return a readable name: context module, backbone, seed and a digest of all that defines the run."""
    plain = identity(cfg)
    return safe_name(f"{attention_label(cfg)}_{backbone_label(cfg)}_seed{cfg.seed}_{digest(plain)}")


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return all keys that define a run, as plain data, without those that say where and how it is executed."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for key in _NOT_IDENTITY:
        if key.endswith("root") and plain.get("data", {}).get("name") == "folder":
            continue  # any other data set is the same wherever it lies
        node: Any = plain
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    if plain.get("init_sha256") is None:
        plain = {key: value for key, value in plain.items() if key not in ("init_sha256", "init_parts")}
    nodes = plain.pop("callbacks", None) or {}
    if counted := {
        name: node for name, node in nodes.items() if node.get("_target_") not in _PASSIVE_CALLBACKS
    }:
        plain["callbacks"] = counted
    return {str(key): value for key, value in plain.items()}


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    if not isinstance(node, dict):
        return {path: node}
    return {
        k: v for key, value in node.items() for k, v in leaves(value, f"{path}.{key}".lstrip(".")).items()
    }


def digest(plain: Any) -> str:
    """Return eight hexadecimal digits of a hash of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def same_run(cfg: DictConfig, folder: Path) -> bool:
    """Return whether the run in `folder` computes what `cfg` describes."""
    wanted = run_name(cfg)
    try:
        held = OmegaConf.load(folder / "config.yaml")
        return isinstance(held, DictConfig) and run_name(held) == wanted
    except Exception:  # absent, of another version, or cut short: YAML has many errors for it
        return False


def validation_interval(cfg: DictConfig) -> int:
    """Return after how many steps to validate: trainer.val_check_interval, or a divisor of max_steps near it.

    A divisor validates and saves the last step too. If there is none between half and twice the configured interval, that
    interval is kept.
    """
    steps, interval = int(cfg.trainer.max_steps), int(cfg.trainer.val_check_interval)
    wanted = min(interval, steps)
    divisors = [i for i in range(1, steps + 1) if steps % i == 0]
    below, above = max(i for i in divisors if i <= wanted), min(i for i in divisors if i >= wanted)
    near = below if 2 * below >= wanted else above
    return near if near <= 2 * wanted else wanted


def attention_label(cfg: DictConfig) -> str:
    """Return a short name of the context module, e.g. `isa-8x8`, `isa-8x8-long`, `isa-8x8-d2`, `dense`.

    It begins with `attention.label` where that is given, else with the name of the YAML file in conf/attention, or with
    that of the class if there is no file.
    """
    node = cfg.attention
    target = str(node["_target_"])
    name = str(node.get("label") or _labels().get(target) or target.rsplit(".", 1)[-1])
    for key in ("group_size", "window_size", "grid_size"):
        if OmegaConf.is_list(node.get(key)):
            name += "-" + "x".join(str(p) for p in node[key])
    if node.get("order") not in (None, "long_short", "window_grid", "rows_columns"):  # the usual ones
        name += f"-{node.order}"
    for key, letter in {"recurrence": "r", "passes": "r", "kernel_size": "k"}.items():
        if key in node:
            name += f"-{letter}{node[key]}"
    if any(dilation != 1 for dilation in node.get("dilations", [])):
        name += "-dilated-" + "x".join(str(d) for d in node.dilations)
    if node.get("depth", 1) != 1:
        name += f"-d{node.depth}"
    if node.get("heads", 1) != 1:
        name += f"-h{node.heads}"
    if node.get("position_bias") is not None:
        name += f"-bias{node.position_bias}"
    if node.get("residual"):
        name += "-residual"
    return name


def backbone_label(cfg: DictConfig) -> str:
    """Return the name of the backbone, or that of its class if it has none."""
    return str(cfg.backbone.get("name") or str(cfg.backbone["_target_"]).rpartition(".")[2])


def safe_name(name: str) -> str:
    """Return a name as that of a file or folder: letters, digits and . = , _ - alone, no dot first."""
    return re.sub(r"[^\w.=,-]+", "-", name).lstrip(".")


@cache
def _labels() -> dict[str, str]:
    """Return the name of the file in conf/attention for each `_target_`; of several, the shortest."""
    paths = sorted(
        (conf_dir() / "attention").glob("*.yaml"), key=lambda path: (len(path.stem), path.stem), reverse=True
    )
    return {
        str(OmegaConf.select(OmegaConf.load(path), "_target_")): path.stem.replace("_", "-") for path in paths
    }

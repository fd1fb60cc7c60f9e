"""What follows from a training's words: the network of the file `init_from` takes the place of the configured one."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from isaseg.config.composition import shortened
from isaseg.config.targets import check_targets
from isaseg.errors import CheckpointError, ConfigError
from isaseg.files import SUFFIXES, sha256

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_PARTS = ("backbone", "attention", "head")
_WORD = re.compile(rf"([+~]*)/?(({'|'.join(_PARTS)})(?:\.[\w.]+)?)(?:[@=]|$)")


class _File(NamedTuple):
    """What a configuration needs to know of a file; `tensors` are on the meta device."""

    sha256: str
    description: dict[str, Any]
    tensors: "dict[str, Tensor]"


def initialised(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """Return a training configuration with what follows from its words, or itself where nothing does.

    With `callbacks.profile` it has the few steps that are watched. With `init_from` it has the network of that file: the
    nodes backbone, attention and head become those of the file, normalisation included. What `words` say of them holds,
    and what only a training uses (freeze, norm_eval, recompute, label, init) stays. `init_sha256` becomes that of the
    file, so that a run is named by its content.

    Args:
        cfg: The configuration.
        words: KEY=VALUE words of the command, with which `cfg` was composed.

    Raises:
        ConfigError: If there is no such file, or it is another one than `init_sha256` says.
        CheckpointError: If it does not load, or one of init_parts does not fit the network that the words ask for.
    """
    cfg = shortened(cfg)
    if OmegaConf.select(cfg, "init_from") is None:
        return cfg
    path = initial_file(cfg)
    status = path.stat()
    file = _read(path, status.st_size, status.st_mtime_ns)  # torch: a missing file is reported before that
    if cfg.init_sha256 is not None and str(cfg.init_sha256).lower() != file.sha256:
        raise ConfigError(
            f"expected init_from='{path}' to have init_sha256={cfg.init_sha256}, got {file.sha256}; give the file that "
            "was meant, or leave init_sha256 out"
        )
    said = {found[2]: (found[3], found[1], word) for word in words if (found := _WORD.match(word))}
    new = _with_network(cfg, file, said)
    if said and (wrong := _misfits(new, file)):
        alone = {
            key: one for key, one in said.items() if _misfits(_with_network(cfg, file, {key: one}), file)
        }
        raise _conflict(new, path, file, [word for *_, word in (alone or said).values()], wrong)
    return new


def _with_network(cfg: DictConfig, file: _File, said: Mapping[str, tuple[str, str, str]]) -> DictConfig:
    """Return a configuration with the network of a file, except for keys that are `said`: part, sign and word of each."""
    nodes = _nodes(cfg, file.description)
    new = cfg.copy()
    with read_write(new), open_dict(new):
        new.init_sha256 = file.sha256
        for part in nodes.keys() - said.keys():
            new[part] = nodes[part]
        for key, (part, sign, _) in said.items():
            if part in said:
                continue  # the whole node is the command's
            if sign == "~":
                new[part].pop(key.partition(".")[2], None)
            else:
                OmegaConf.update(new, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    return new


def initial_file(cfg: DictConfig) -> Path:
    """Return the path of the file `init_from`: itself, or the one of a network in that folder or on the hub.

    Raises:
        ConfigError: If there is none, or several.
        CheckpointError: If the hub does not give it.
    """
    path = Path(str(cfg.init_from)).expanduser()
    if not path.exists() and path.suffix not in SUFFIXES and len(path.parts) > 1:
        from isaseg.models.hub import located  # torch

        path = located(path)
    if (path / "config.json").is_file():
        from isaseg.models.tensor_files import weights_of

        return weights_of(path)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ConfigError(
                f"expected one file of a network ({' '.join(SUFFIXES)}) in init_from='{path}', got {names}; name one"
            )
        return found[0]
    if not path.is_file():
        raise ConfigError(
            f"expected a file as init_from, got '{path}', which does not exist; check the path: the file says which "
            "network the run has, even where the run is complete"
        )
    return path


def describe_network(cfg: DictConfig) -> dict[str, Any]:
    """Return backbone, attention, head and slope as `build_described` takes them, from the nodes of a configuration."""
    from isaseg.models import context_modules
    from isaseg.models.backbone import Backbone

    head: Any = OmegaConf.to_container(cfg.head, resolve=True)
    head.pop("init", None)  # the checkpoint has the weights
    names = {kind: {"name": name} for name, kind in context_modules().items()}
    return {
        "backbone": _described(cfg.backbone, {Backbone: {}}),
        "attention": _described(cfg.attention, names),
        "negative_slope": head.pop("negative_slope", 0.0),
        "head": head,
    }


def _described(node: DictConfig, known: dict[type, dict[str, str]]) -> dict[str, Any]:
    """Return name and arguments of a part: of those that are `known` as they are named there, of others the class."""
    from hydra.utils import get_object

    from isaseg.models.description import NOT_DESCRIBED

    target = str(node["_target_"])
    left_out = {"_target_", "_partial_", "label"}
    name = known.get(get_object(target))
    left_out |= {"weights", "weights_sha256"} if name is None else NOT_DESCRIBED
    plain: Any = OmegaConf.to_container(node, resolve=True)
    described = {str(key): value for key, value in plain.items() if key not in left_out}
    if "pretrained" in described:
        described["pretrained"] = False  # the checkpoint has the weights
    return {**({"_target_": target} if name is None else name), **described}


def _nodes(cfg: DictConfig, description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of a description: what `describe_network` was made from."""
    from isaseg.models import context_modules
    from isaseg.models.backbone import Backbone

    backbone, attention = dict(description["backbone"]), dict(description["attention"])
    if "_target_" not in backbone:
        here = {"_target_": _path(Backbone), "pretrained": False, "weights": None, "weights_sha256": None}
        backbone = {**here, **_held(cfg, "backbone", ("freeze", "norm_eval")), **backbone}
    if "_target_" not in attention:
        attention = {"_target_": _path(context_modules()[attention.pop("name")]), **attention}
    attention["_partial_"] = True
    if OmegaConf.select(cfg, "attention._target_") == attention["_target_"]:
        attention |= _held(cfg, "attention", ("recompute", "label"))
    head = {**_held(cfg, "head", ("init",)), **description["head"]}
    if slope := description.get("negative_slope"):
        head["negative_slope"] = slope
    return {"backbone": backbone, "attention": attention, "head": head}


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _held(cfg: DictConfig, part: str, keys: Sequence[str]) -> dict[str, Any]:
    node = cfg[part] if OmegaConf.is_dict(cfg[part]) else {}
    return {key: node[key] for key in keys if key in node}


@cache  # the jobs of a sweep begin with one file
def _read(path: Path, size: int, time: int) -> _File:
    from isaseg.checkpoints.loading import read_network
    from isaseg.models.description import part_name

    kind, description, weights = read_network(path)
    log.info(
        "init_from='%s': %s with %s, %d classes, written by %s",
        path,
        description["backbone"].get("name") or part_name(description["backbone"]),
        part_name(description["attention"]),
        description["num_classes"],
        kind,
    )
    return _File(sha256(path), description, {name: tensor.to("meta") for name, tensor in weights.items()})


def _misfits(cfg: DictConfig, file: _File) -> dict[str, list[str]]:
    """Return, of each of init_parts that does not fit the network of a configuration, what differs."""
    import torch

    from isaseg.checkpoints.parts import misfits
    from isaseg.models.segmenter import build_described

    nodes = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in ("backbone", "attention")}
    if not OmegaConf.is_list(cfg.init_parts) or not all(
        "_target_" in (node or {}) for node in nodes.values()
    ):
        return {}  # `config.checks` says why
    for part, node in nodes.items():
        check_targets(node, part)
    try:
        with torch.device("meta"):
            ours = build_described({**describe_network(cfg), "num_classes": file.description["num_classes"]})
    except CheckpointError:
        return {}  # building it says why
    return misfits(ours.state_dict(), file.tensors, cfg.init_parts)


def _conflict(
    cfg: DictConfig, path: Path, file: _File, words: Sequence[str], wrong: Mapping[str, list[str]]
) -> CheckpointError:
    from isaseg.models.description import part_name

    fit = [part for part in cfg.init_parts if part not in wrong]
    theirs, mine = (
        " with ".join(str(part_name(node[part])) for part in ("backbone", "attention"))
        for node in (file.description, describe_network(cfg))
    )
    leave = "leave that" if len(words) == 1 else "leave those words"
    instead = f", or set init_parts=[{','.join(fit)}]" if fit else ""
    return CheckpointError(
        f"expected a network that takes {' and '.join(wrong)} of init_from='{path}' ({theirs}), got {' '.join(words)} "
        f"({mine}), with other tensors: {next(iter(wrong.values()))[0]}; {leave} out{instead}"
    )

"""What a backbone, a context module and a loss of the user's own must return, checked on one image before a run."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isaseg.errors import ConfigError, IsasegError, is_out_of_memory
from isaseg.models.segmenter import Segmenter


@torch.no_grad()
def check_parts(segmenter: Segmenter, height: int, width: int, device: str = "cpu") -> None:
    """Run the parts of a network that are not of this project on a black image, in a copy, and compare shapes.

    Args:
        device: Where the copy runs.

    Raises:
        ConfigError: If a parameter has no shape yet, or a part fails or returns anything but floating-point maps of the
            channels that it promises.
    """
    if all(is_ours(part) for part in (segmenter.backbone, segmenter.head.attention)):
        return
    if lazy := [name for name, parameter in segmenter.named_parameters() if is_lazy(parameter)]:
        raise ConfigError(
            f"expected parameters that have a shape once they are built, got {lazy[0]} without one; replace the lazy "
            "layer by one with its sizes"
        )
    network = copy.deepcopy(segmenter).to(device).eval()
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device)
    maps = _output(network.backbone, "backbone", image)
    channels = list(network.backbone.channels)
    if not isinstance(maps, list | tuple) or [_channels(m) for m in maps] != channels:
        raise ConfigError(
            f"expected the backbone {type(network.backbone).__name__} to return floating-point maps (B, C, H, W) of "
            f"channels={channels}, got {_shown(maps)}; correct its forward or its channels"
        )
    x = network.head.reduce(maps[-1])
    promised: Any = network.head.fuse[0].weight
    context = _output(network.head.attention, "attention", x)
    wanted = (1, promised.shape[1] // 2, *x.shape[-2:])
    if _channels(context) is None or tuple(context.shape) != wanted:
        raise ConfigError(
            f"expected the context module {type(network.head.attention).__name__} to return a floating-point map "
            f"{wanted} for one of {tuple(x.shape)}, got {_shown(context)}; correct its forward or its out_channels"
        )


def check_loss(loss: Callable[..., Any], num_classes: int, ignore_index: int) -> None:
    """Apply a copy of a loss that is not of this project to logits for every class and pixels that do not count.

    Raises:
        ConfigError: If it refuses them, or does not return a scalar with a gradient.
    """
    if is_ours(loss):
        return
    side = math.isqrt(num_classes) + 8
    target = torch.arange(side * side) % (num_classes + 1)
    target = target.where(target < num_classes, ignore_index).view(1, side, side)
    more = {"align_corners": False} if takes_align_corners(loss) else {}
    coarse = side // 2 if more else side
    logits = torch.zeros(1, num_classes, coarse, coarse, requires_grad=True)
    size = "h, w), of another size" if more else "H, W)"
    wanted = (
        f"expected the loss to take logits (B, {num_classes}, {size} and labels (B, H, W), int64, of which "
    )
    wanted += f"{ignore_index} does not count, and to return a scalar with a gradient, got"
    try:
        with torch.random.fork_rng(devices=[]):
            value = copy.deepcopy(loss)(logits, target, **more)
    except Exception as error:
        raise ConfigError(
            f"{wanted} {type(error).__name__}: {error}; see loss._target_ and loss.ignore_index"
        ) from error
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad):
        raise ConfigError(f"{wanted} {_shown(value)}; see loss._target_")


@torch.no_grad()
def check_one_sample(segmenter: Segmenter, height: int, width: int) -> None:
    """Check that a network can be trained with one sample, (height, width), in a forward pass.

    The trial runs in a copy, on the meta device. A batch norm of a single position a map has nothing to average then, and
    torch refuses it at the first step. Any other failure of the trial is ignored: not every module runs on that device.

    Raises:
        ConfigError: If a norm needs more than one sample; it names the module and says what to do.
    """
    names: list[str] = []  # of the modules in the order in which they are called
    try:
        with torch.random.fork_rng(devices=[]):
            network = copy.deepcopy(segmenter).to("meta").train()
            for name, part in network.named_modules():
                part.register_forward_pre_hook(lambda *_, name=name: names.append(name))
            network.coarse_with_aux(torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta"))
    except Exception as error:
        if "more than 1 value per channel when training" not in str(error):
            return
        key = next((key for key in ("head.attention", "backbone") if names[-1].startswith(f"{key}.")), "head")
        raise ConfigError(
            f"expected two samples a process and forward pass at least, got one: {names[-1]}, a batch norm of "
            f"{type(segmenter.get_submodule(key)).__name__}, has a single value per channel then. Raise data.batch_size, "
            "lower trainer.accumulate_grad_batches, set trainer.sync_batchnorm=true with several devices, or choose "
            f"another {key.removeprefix('head.')}"
        ) from error


def takes_align_corners(loss: Callable[..., Any]) -> bool:
    """Return whether a loss takes `align_corners`: it then gets coarse logits and resizes them itself."""
    forward = loss.forward if isinstance(loss, nn.Module) else loss
    return "align_corners" in inspect.signature(forward).parameters


def is_ours(part: object) -> bool:
    """Return whether a module is of a class of this project."""
    return type(part).__module__.startswith("isaseg.")


def _output(part: nn.Module, key: str, x: Tensor) -> Any:
    try:
        return part(x)
    except Exception as error:
        if is_out_of_memory(error) or is_ours(part) or isinstance(error, IsasegError):
            raise
        raise ConfigError(
            f"expected the {key} {type(part).__name__} to take {_shown(x)}, got {type(error).__name__}: {error}; correct "
            f"it or its arguments, see {key}._target_"
        ) from error


def _channels(value: object) -> int | None:
    """Return C of a floating-point map (1, C, H, W), None for anything else."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 4 and len(value) == 1:
        return value.shape[1]
    return None


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(part) for part in value)}]"
    return type(value).__name__

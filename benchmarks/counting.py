"""Multiply-adds and peak memory of a part on a map of any size, computed from the operations that would run."""

import bisect
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._compat import FakeTensorMode, TorchDispatchMode
from benchmarks.context_parts import Setting, context_module, prepare, rules
from isaseg.models.attend import by_definition


class Computed(NamedTuple):
    """What a part takes on one size of map.

    Attributes:
        mult_adds: Multiply-adds as torch's flop counter counts them, with the scores held.
        held_bytes: Weights and input.
        peak_bytes: The most that exists at a time beyond these, without workspaces inside kernels.
    """

    mult_adds: int
    held_bytes: int
    peak_bytes: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that operations create, until nothing refers to them.

    Args:
        held: Tensors that exist before and are not counted.
    """

    def __init__(self, held: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known = {id(t.untyped_storage()) for t in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it returns for the first time."""
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live + _reordered_bytes(func, args, out))
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._known:
            self._known.add(id(storage))
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _reordered_bytes(func: Any, args: Any, out: Any) -> int:
    """Return the bytes of the copies that a convolution on a CPU keeps beside its output while it runs.

    oneDNN wants channels in blocks. As measured in float32: of a channels-last map only the weights are copied (twice
    for a 3x3 kernel). Of any other, the map and the weights are copied, then, when these are freed, the output; a map
    with other strides is made contiguous before. A plain 1x1 convolution of a contiguous map copies nothing.
    """
    if func is not torch.ops.aten.convolution.default or args[0].device.type != "cpu":
        return 0
    x, weight, groups = args[0], args[1], args[-1]
    pointwise = weight.shape[2:].numel() == 1 and groups == 1
    if pointwise and x.is_contiguous():
        return 0
    if x.is_contiguous(memory_format=torch.channels_last) and (pointwise or weight.shape[2:].numel() > 1):
        return int(weight.nbytes) * (1 if pointwise else 2)
    first = 0 if x.is_contiguous() or not pointwise else x.nbytes
    return int(first + max(x.nbytes + weight.nbytes, out.nbytes))


class Counter:
    """Computes what the parts of a module of MODULES take, on maps of any size."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting, self.mode = name, setting, FakeTensorMode()
        with self.mode:
            self.module = context_module(name, setting)

    @torch.no_grad()
    def __call__(self, part: str, side: int) -> Computed:
        """Return what `part` takes on a map of `side` x `side`."""
        with self.mode:
            run, held = prepare(self.module, part, side, self.setting)
            with FlopCounterMode(display=False) as counter, by_definition():
                run()
            with rules(self.name), LiveBytes(held) as live:
                run()
                live.peak = kept = live.live  # what the first run creates and keeps
                _ = run()  # its result counts, so it must live
        return Computed(counter.get_total_flops() // 2, sum(t.nbytes for t in held), live.peak - kept)

    def largest_side(self, limit: int, step: int = 8, most: int = 4096) -> int | None:
        """Return the largest side of a map, a multiple of `step`, whose block fits into `limit` bytes.

        None means that all sides up to `most` fit.
        """
        sides = range(step, most + 1, step)
        fitting = bisect.bisect_right(sides, limit, key=lambda side: sum(self("block", side)[1:]))
        return None if fitting == len(sides) else fitting * step

"""Multiply-adds and peak memory, computed from the operations that would run, for a map of any size."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.modules_rows import Row, Setting, build, placed, prepare
from isaseg.models.attend import by_definition


class Computed(NamedTuple):
    """What a part of a row takes on one size of map.

    Attributes:
        mult_adds: Multiply-adds of one map, forward, as flop_counter counts them with the scores held.
        held_bytes: Weights and input.
        peak_bytes: Most that is there at a time beyond these; without what kernels keep inside them.
    """

    mult_adds: int
    held_bytes: int
    peak_bytes: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of tensors that operations make, from when they are made until nothing refers to them.

    Args:
        held: Tensors that are there already, and are not counted.
    """

    def __init__(self, held: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note the storages that it returns for the first time."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self.live + _reordered(func, args, out))
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _reordered(func: Any, args: Any, out: Any) -> int:
    """Return the bytes that a convolution on a CPU keeps beside its output while it runs.

    oneDNN wants channels in blocks. Measured on float32 maps: a channels-last map is used as it is, and only weights are
    copied, twice; of any other the map and the weights are copied, then, these being freed, the output; a plain 1x1
    convolution copies nothing. Backward, gradient and map are copied, of a 1x1 in groups the map. cuDNN decides by
    itself what it takes.
    """
    if func not in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
        return 0
    if args[0].device.type != "cpu":
        return 0
    if func is torch.ops.aten.convolution_backward.default:
        if args[2].shape[2:].numel() == 1:  # these are grouped: Pointwise is no convolution on a CPU
            return int(args[1].nbytes)
        return sum(_unless_channels_last(t) for t in args[:2])
    x, weight, groups = args[0], args[1], args[-1]
    if weight.shape[2:].numel() == 1:
        return 0 if groups == 1 else max(x.nbytes + weight.nbytes, out.nbytes)
    if not _unless_channels_last(x):
        return 2 * int(weight.nbytes)
    return int(max(x.nbytes + weight.nbytes, out.nbytes))


def _unless_channels_last(x: Tensor) -> int:
    return 0 if x.is_contiguous(memory_format=torch.channels_last) else x.nbytes


class Counter:
    """Computes what a row takes, for as many parts and sizes as are asked; it is built once."""

    def __init__(self, row: Row, setting: Setting) -> None:
        self.row, self.setting = row, setting
        self.mode = FakeTensorMode()
        with self.mode, placed(setting):
            self.module: nn.Module = build(row, setting.channels[1])

    def __call__(self, part: str, side: int) -> Computed:
        """Return what `part` takes on a map of `side` x `side`."""
        with self.mode:
            once = self.setting._replace(batch=1, train=False)
            run, _ = prepare(self.row, part, side, once, self.module)
            mult_adds = counted_mult_adds(run)
            run, held = prepare(self.row, part, side, self.setting, self.module)
            with torch.set_grad_enabled(self.setting.train), self.row.rules(), LiveBytes(held) as live:
                run()
                live.peak = once_made = live.live  # and kept, as folded matrices are
                _ = run()  # what it returns counts
        return Computed(mult_adds, sum(t.nbytes for t in held), live.peak - once_made)


def counted_mult_adds(run: Callable[[], Any]) -> int:
    """Return the multiply-adds of a run with the scores held, half of what torch's flop counter counts."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), by_definition():
        run()
    return int(counter.get_total_flops()) // 2


def largest_side(counter: Counter, part: str, limit: int, step: int = 8, most: int = 4096) -> int | None:
    """Return the largest side, a multiple of `step`, that fits into `limit` bytes; None if even `most` does."""

    def fits(number: int) -> bool:
        computed = counter(part, number * step)
        return computed.held_bytes + computed.peak_bytes <= limit

    low, high = 0, most // step
    if fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * step

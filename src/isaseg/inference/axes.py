"""Resizing, averaging of windows and mirroring as one matrix for each axis. Pure PyTorch."""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Band(NamedTuple):
    """Weights (rows, n) of the consecutive outputs `begin` to `end` of an axis; those of all others are 0.

    `matrix` is on the CPU, where it is read without waiting; `there` is the same on the device.
    """

    begin: int
    matrix: Tensor
    there: Tensor

    @property
    def end(self) -> int:
        """Return where the consecutive outputs end."""
        return self.begin + len(self.matrix)


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return where windows of `crop` start along an axis; the last one ends where the axis ends."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [min(i * stride, length - crop) for i in range(count)]


@lru_cache(maxsize=32)  # pictures often have the same size, and a copy to a device waits for it
def window_bands(
    coarse: int,
    crop: int,
    starts: tuple[int, ...],
    length: int,
    merged: int,
    align_corners: tuple[bool, bool],
    mirror: bool,
    device: torch.device,
) -> tuple[Band, ...]:
    """Return for each window the weights with which its coarse values enter the merged axis.

    They resize `coarse` values to the window of `crop`; average where windows overlap (the counts of a grid are products
    of those of its axes); resize from the input's `length` to `merged`; and mirror the axis. `align_corners` is of the
    first resizing and of the second.
    """
    window = _matrix(coarse, crop, "bilinear", align_corners[0])
    count = window.new_zeros(length)
    for start in starts:
        count[start : start + crop] += 1
    bands = []
    for start in starts:
        placed = window.new_zeros(length, coarse)
        placed[start : start + crop] = window / count[start : start + crop, None]
        matrix = _resized_rows(placed, merged, "bilinear", align_corners[1])
        begin, end = used(matrix.T)
        matrix = matrix[begin:end].flip(0) if mirror else matrix[begin:end].clone()
        bands.append(Band(merged - end if mirror else begin, matrix, matrix.to(device)))
    return tuple(bands)


@lru_cache(maxsize=8)
def final_band(length: int, size: int, mode: str, device: torch.device) -> Band:
    """Return the weights with which an axis is resized at the end."""
    matrix = _matrix(length, size, mode, False)
    return Band(0, matrix, matrix.to(device))


def _matrix(length: int, size: int, mode: str, align_corners: bool) -> Tensor:
    """Return the weights (size, length) with which torch resizes an axis."""
    return _resized_rows(torch.eye(length), size, mode, align_corners)


def _resized_rows(matrix: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    if len(matrix) == size:
        return matrix
    columns = matrix.T[None, :, :, None]  # as channels, so that the arithmetic is torch's own
    done = F.interpolate(columns, size=(size, 1), mode=mode, align_corners=align_corners)
    return done[0, :, :, 0].T.contiguous()


def used(weight: Tensor) -> tuple[int, int]:
    """Return the range of columns of a matrix outside which all is 0."""
    columns = weight.any(0).nonzero()
    return int(columns[0]), int(columns[-1]) + 1

"""What descendants of ISA added, against its definition, pixel by pixel: heads, position bias, residual."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from isaseg.analysis.attention_maps import attention_maps
from isaseg.models.attention_block import AttentionBlock
from isaseg.models.fuse import fuse
from isaseg.models.interlaced import InterlacedSparseAttention
from tests.models.references import CASES, Size, lattice, make_isa, offset, project, random_map, window

OPTIONS: list[dict[str, Any]] = [
    {"heads": 3},
    {"position_bias": 1},
    {"position_bias": 2, "heads": 3},
    {"residual": True},
    {"position_bias": 1, "heads": 3, "residual": True},
]


def stage(isa: InterlacedSparseAttention, name: str, pixels: dict[Size, Tensor]) -> dict[Size, Tensor]:
    """Each pixel and head in turn: softmax over its group of q . k / sqrt(D / K) + table[head, offset]."""
    block, (p_h, p_w) = isa.get_submodule(name), isa.group_size
    assert isinstance(block, AttentionBlock)
    long = name == "long_range"
    step, pattern = ((p_h, p_w), lattice) if long else ((1, 1), window)
    x_NC = torch.stack(list(pixels.values()))
    q, k, v = (project(layers, x_NC).chunk(isa.heads, 1) for layers in (block.query, block.key, block.value))
    contexts = []
    for n, cell in enumerate(pixels):
        group = [(m, other) for m, other in enumerate(pixels) if pattern(isa.group_size)(cell, other)]
        parts = []
        for head in range(isa.heads):
            scores = torch.stack([q[head][n] @ k[head][m] for m, _ in group]) / q[head].shape[1] ** 0.5
            if isa.position_bias:
                table = isa.position_bias[name][head]
                far = len(table) // 2
                away = [
                    [(b - a) // s for a, b, s in zip(cell, other, step, strict=True)] for _, other in group
                ]
                near = [[max(-far, min(far, d)) + far for d in offsets] for offsets in away]
                scores = scores + torch.stack([table[down, right] for down, right in near])
            parts.append(scores.softmax(0) @ torch.stack([v[head][m] for m, _ in group]))
        contexts.append(torch.cat(parts))
    out = project(block.proj, torch.stack(contexts))
    return dict(zip(pixels, out + x_NC if isa.residual else out, strict=True))


# all sizes of all options together; of each alone one size that fits and one that does not
@pytest.mark.parametrize(
    ("options", "size", "group"),
    [
        (options, size, group)
        for options in OPTIONS
        for size, group in (CASES if options is OPTIONS[-1] else (CASES[0], CASES[3]))
    ],
    ids=str,
)
@pytest.mark.parametrize("mask_padding", [False, True])
def test_options_equal_their_definition(
    options: dict[str, Any], size: Size, group: Size, mask_padding: bool
) -> None:
    isa, x = make_isa(group_size=group, mask_padding=mask_padding, **options), random_map(1, 6, *size)
    top, left = offset(size, group)
    inside = [(r + top, c + left) for r, c in product(range(size[0]), range(size[1]))]
    frame = [range(n + -n % p) for n, p in zip(size, group, strict=True)]
    cells = inside if mask_padding else list(product(*frame))
    zero = torch.zeros(6, dtype=x.dtype)
    pixels = {(r, c): x[0, :, r - top, c - left] if (r, c) in inside else zero for r, c in cells}
    for name in ("long_range", "short_range"):
        pixels = stage(isa, name, pixels)
    want = torch.stack([pixels[cell] for cell in inside], 1).view(1, 6, *size)
    for run in (isa, fuse(isa)):
        torch.testing.assert_close(run(x), want, rtol=0, atol=1e-12)
    with torch.no_grad():  # a few groups at a time
        torch.testing.assert_close(isa(x), want, rtol=0, atol=1e-12)


def test_a_network_begins_as_without_the_bias_and_learns_it() -> None:
    x = random_map(1, 6, 8, 8)
    torch.manual_seed(0)
    plain = InterlacedSparseAttention(6, group_size=(4, 4)).double()
    torch.manual_seed(0)
    biased = InterlacedSparseAttention(6, group_size=(4, 4), position_bias=3).double()
    assert torch.equal(plain(x), biased(x))
    biased(x).square().sum().backward()
    for name, table in biased.position_bias.items():
        assert table.shape == (1, 7, 7)
        assert table.grad is not None
        reach = 1 if name == "long_range" else 3  # a lattice of two rows and columns has no larger offset
        used = table.grad[0] != 0
        assert used[3 - reach : 4 + reach, 3 - reach : 4 + reach].all()
        assert used.sum() == (2 * reach + 1) ** 2


def test_the_published_module_has_none_of_them() -> None:
    plain = InterlacedSparseAttention(8)
    given = InterlacedSparseAttention(8, heads=1, position_bias=None, residual=False)
    assert list(plain.state_dict()) == list(given.state_dict())
    assert not [key for key in plain.state_dict() if "position_bias" in key]


def test_attention_maps_are_the_mean_over_the_heads() -> None:
    """The map of a stage, read off by values that are 1 at a single position in every channel of a head."""
    isa, x = make_isa(group_size=(2, 2), heads=3, position_bias=1, order="short"), random_map(1, 6, 4, 4)
    weights = attention_maps(isa, x, [(1, 2)]).stages["short_range"][0]
    block, table = isa.short_range, isa.position_bias["short_range"]
    q, k = (project(layers, x[0].flatten(1).T).chunk(3, 1) for layers in (block.query, block.key))  # type: ignore[union-attr,arg-type]
    cells = {(r, c): (r - 1, c - 2) for r in (0, 1) for c in (2, 3)}
    want = torch.zeros(4, 4, dtype=x.dtype)
    for head in range(3):
        scores = [
            q[head][6] @ k[head][4 * r + c] + table[head, 1 + d, 1 + e] for (r, c), (d, e) in cells.items()
        ]
        for (r, c), weight in zip(cells, torch.stack(scores).softmax(0), strict=True):
            want[r, c] += weight.detach() / 3
    torch.testing.assert_close(weights, want, rtol=0, atol=1e-12)

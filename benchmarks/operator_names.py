"""What the page docs/operators.md says of each YAML of `conf/attention`, in its order."""

from typing import NamedTuple


class Operator(NamedTuple):
    """A row of the page.

    Attributes:
        scores: Number of scores. N positions of an H × W map, P of a window, Q of a lattice, G of a grid, k the kernel,
            M descriptors.
        published: Who published it, and under which name.
        same: What is the same as there or as ISA, and what is not.
    """

    scores: str
    published: str
    same: str


TEST = "[test](../tests/models/test_operators.py)"

OPERATORS = {
    "isa": Operator(
        "N (P + Q)",
        "ISANet's interlaced sparse self-attention (1907.12273)",
        "the published module, see [checkpoints](checkpoints.md)",
    ),
    "isa_long": Operator(
        "N Q",
        "CrossFormer's long-distance attention (2108.00154)",
        f"the groups: positions a fixed interval apart ({TEST})",
    ),
    "isa_short": Operator(
        "N P",
        "Swin's first stage (2103.14030), MaxViT's block attention (2204.01697), HRFormer's local windows (2110.09408)",
        f"the groups: `split_windows` is `window_partition` of timm ({TEST})",
    ),
    "isa_parallel": Operator(
        "N (P + Q), of each size", "openseg's list of `factors`", "several ISA blocks side by side"
    ),
    "grid_block": Operator(
        "N (P + G)",
        "MaxViT's block and grid attention (2204.01697); its grid: Shuffle Transformer's spatial shuffle (2106.03650)",
        f"`interlace` is `grid_partition` of timm; at 64×64 the block is ISA with `order=short_long` ({TEST})",
    ),
    "shifted_windows": Operator(
        "about 2 N P",
        "Swin's pair of blocks (2103.14030)",
        f"the result of Swin's cyclic shift and mask ({TEST})",
    ),
    "axial": Operator(
        "N (H + W)",
        "axial attention (1912.12180), Axial-DeepLab (2003.07853)",
        f"ISA with `group_size=[1, W]` and `order=short_long` ({TEST}); no position terms",
    ),
    "criss_cross_plain": Operator(
        "2 N (H + W)",
        "CCNet's pattern (1811.11721)",
        "row and column under one softmax; each pass has weights of its own",
    ),
    "criss_cross": Operator(
        "2 N (H + W)",
        "CCNet's recurrent module (1811.11721)",
        "as published: shared weights, C / 8 keys, no scale, a gate",
    ),
    "neighbourhood": Operator(
        "2 N k²", "NAT's neighbourhood attention (2204.07143)", "the neighbours, moved inwards at the border"
    ),
    "neighbourhood_dilated": Operator(
        "2 N k²", "DiNAT (2209.15001)", "a local stage, then a dilated one; the dilation is ours"
    ),
    "pooled_keys": Operator(
        "N (P + Q)",
        "Twins' locally-grouped and global sub-sampled attention (2104.13840)",
        "one key for each window: here an average, there a strided convolution",
    ),
    "linear": Operator(
        "none", "EfficientViT's ReLU linear attention (2205.14756)", "the kernel; no multi-scale aggregation"
    ),
    "double_attention": Operator("2 N M", "A²-Nets (1810.11579)", "without its residual"),
    "cgnl": Operator("none", "compact generalised non-local (1810.13125)", "dot-product kernel, no residual"),
    "dense": Operator(
        "N²",
        "the non-local block (1711.07971), OCNet's BaseOC (1809.00916)",
        f"ISA's long range with `group_size=[1, 1]`, its short range with `[H, W]` ({TEST})",
    ),
}

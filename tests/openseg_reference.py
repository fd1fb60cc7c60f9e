"""The published ISANet written from its definition, in float64 and step by step, to compare imported weights with.

`Reference` is the network in evaluation mode, `Training` in training mode with openseg's loss and steps. Weights carry
openseg's names in their InPlaceABN form; `with_torch_norms` and `as_mmseg` give the other two files.
Sources: openseg.pytorch isanet.py, isa_block.py, resnet_models.py, resnet_backbone.py, inplace_abn_cuda.cu,
loss_helper.py, optim_scheduler.py; mmsegmentation isa_head.py.
Single precision are only the constants of the normalisation, which the code bases hold so.
"""

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Style(NamedTuple):
    """In what the code bases differ."""

    mean: tuple[float, ...]  # of the channels as the network sees them
    std: tuple[float, ...]
    bgr: bool
    ceil_mode: bool  # of the pooling in the stem
    inplace_abn: bool  # |weight| + eps in every norm, leaky activations in the heads
    context_first: bool  # in the fusion
    align_corners: bool
    group_size: tuple[int, int] = (8, 8)


ABN = Style((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), True, True, True, False, True)
TORCH = ABN._replace(inplace_abn=False)
MMSEG = Style((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False, False, False, True, False)


class Reference:
    """The network in evaluation mode.

    Args:
        weights: Named as in an InPlaceABN file of openseg.
        style: Whose.
        calibrate: Set each norm's statistics to those of its input while running, near enough for signals of size one.
    """

    def __init__(self, weights: Weights, style: Style, calibrate: bool = False) -> None:
        self.weights, self.style, self.calibrate = weights, style, calibrate

    def logits(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both heads, the auxiliary last, (B, K, H, W), of `image`, uint8 RGB (B, 3, H, W)."""
        third, fourth = self.features(image)
        x = self.norm(self.conv(fourth, "isa_head.0", padding=1), "isa_head.1")
        context = self.isa(x)
        both = (context, x) if self.style.context_first else (x, context)
        x = self.norm(self.conv(torch.cat(both, 1), "isa_head.2.conv_bn.0"), "isa_head.2.conv_bn.1")
        y = self.norm(self.conv(third, "dsn_head.0", padding=1), "dsn_head.1")
        return self.resized(self.conv(x, "cls_head"), image), self.resized(self.conv(y, "dsn_head.3"), image)

    def resized(self, logits: Tensor, image: Tensor) -> Tensor:
        corners = self.style.align_corners
        return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=corners)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of the third and of the fourth stage."""
        mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (self.style.mean, self.style.std))
        x = (image[:, [2, 1, 0]] if self.style.bgr else image).double()
        x = (x - mean) / std
        for i in (1, 2, 3):
            x = self.conv(x, f"backbone.resinit.conv{i}", stride=2 if i == 1 else 1, padding=1)
            x = self.norm(x, f"backbone.resinit.bn{i}", "relu")
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.style.ceil_mode)
        x = self.stage(x, "backbone.layer1", 1, 1, 1)
        x = self.stage(x, "backbone.layer2", 2, 1, 1)
        third = self.stage(x, "backbone.layer3", 1, 1, 2)  # a stride given up is made good by dilation, ...
        return third, self.stage(third, "backbone.layer4", 1, 2, 4)  # ... half of it in the first block

    def stage(self, x: Tensor, name: str, stride: int, first: int, rest: int) -> Tensor:
        number = 0
        while f"{name}.{number}.conv1.weight" in self.weights:
            block, dilation = f"{name}.{number}", first if number == 0 else rest
            y = self.norm(self.conv(x, f"{block}.conv1"), f"{block}.bn1", "relu")
            y = self.conv(y, f"{block}.conv2", stride if number == 0 else 1, dilation, dilation)
            y = self.norm(y, f"{block}.bn2", "relu")
            y = self.norm(self.conv(y, f"{block}.conv3"), f"{block}.bn3", "none")
            if number == 0:
                x = self.norm(self.conv(x, f"{block}.downsample.0", stride), f"{block}.downsample.1", "none")
            x = (x + y).relu()
            number += 1
        return x

    def isa(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows, cols = self.style.group_size
        extra_h, extra_w = -height % rows, -width % cols
        top, left = extra_h // 2, extra_w // 2
        x = F.pad(x, (left, extra_w - left, top, extra_h - top))
        far, near = torch.empty_like(x), torch.empty_like(x)
        lattices = [
            (..., slice(i, None, rows), slice(j, None, cols)) for i in range(rows) for j in range(cols)
        ]
        windows = [
            (..., slice(i, i + rows), slice(j, j + cols))
            for i in range(0, x.shape[2], rows)
            for j in range(0, x.shape[3], cols)
        ]
        self.attend(x, far, lattices, "isa_head.2.stages.0.long_range_sa")
        self.attend(far, near, windows, "isa_head.2.stages.0.short_range_sa")
        return near[..., top : top + height, left : left + width]

    def attend(self, x: Tensor, out: Tensor, groups: list[tuple[object, ...]], name: str) -> None:
        q, k = (self.twice(x, f"{name}.f_{part}") for part in ("query", "key"))
        v = self.conv(x, f"{name}.f_value")
        context = torch.empty_like(v)
        for group in groups:
            tokens = [t[group].flatten(2) for t in (q, k, v)]  # type: ignore[index]
            scores = torch.einsum("bdn,bdm->bnm", *tokens[:2]) / q.shape[1] ** 0.5
            shape = context[group].shape  # type: ignore[index]
            context[group] = torch.einsum("bnm,bcm->bcn", scores.softmax(-1), tokens[2]).view(shape)  # type: ignore[index]
        out.copy_(self.norm(self.conv(context, f"{name}.W.0"), f"{name}.W.1"))

    def twice(self, x: Tensor, name: str) -> Tensor:
        x = self.norm(self.conv(x, f"{name}.0"), f"{name}.1")
        return self.norm(self.conv(x, f"{name}.2"), f"{name}.3")

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        weight = self.weights[f"{name}.weight"].double()
        return F.conv2d(x, weight, None if bias is None else bias.double(), stride, padding, dilation)

    def norm(self, x: Tensor, name: str, act: str = "head") -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        mean, var = self.statistics(x, name)
        factor = weight.double().abs() + 1e-5 if self.style.inplace_abn else weight
        mean, var, factor, bias = (t.double().view(-1, 1, 1) for t in (mean, var, factor, bias))
        x = (x - mean) / (var + 1e-5).sqrt() * factor + bias
        if act == "none":
            return x
        slope = 0.01 if act == "head" and self.style.inplace_abn else 0.0
        return torch.where(x < 0, slope * x, x)

    def statistics(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return mean and variance by which a norm standardises each channel."""
        mean, var = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        if self.calibrate:  # the mean square: what random weights give varies little
            mean.copy_(x.mean((0, 2, 3)) * torch.empty_like(mean).uniform_(0.8, 1.2))
            var.copy_(x.square().mean((0, 2, 3)) * torch.empty_like(var).uniform_(0.8, 1.2))
        return mean, var


class Training(Reference):
    """The network in training mode without dropout, its loss and the steps of its optimiser.

    Args:
        weights: As in `Reference`; they are copied.
        style: Whose.
        class_weights: One per class, of both losses.
    """

    def __init__(self, weights: Weights, style: Style, class_weights: Tensor) -> None:
        super().__init__({name: value.double().clone() for name, value in weights.items()}, style)
        self.trained = {name: value for name, value in self.weights.items() if ".running_" not in name}
        for value in self.trained.values():
            value.requires_grad_()
        self.class_weights = class_weights
        self.velocity = {name: torch.zeros_like(value) for name, value in self.trained.items()}

    def statistics(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return those of the batch, and let the running ones follow them by a tenth, the variance unbiased."""
        count = x.numel() // x.shape[1]
        mean = x.sum((0, 2, 3)) / count
        var = (x - mean.view(-1, 1, 1)).square().sum((0, 2, 3)) / count
        for key, now in (("mean", mean), ("var", var * count / (count - 1))):
            kept = self.weights[f"{name}.running_{key}"]
            kept.copy_(0.9 * kept + 0.1 * now.detach())
        return mean, var

    def loss(self, image: Tensor, labels: Tensor, ignored: int = 255) -> tuple[Tensor, Tensor]:
        """Return the whole loss and the auxiliary one, of `labels`, integers (B, H, W)."""
        losses = []
        for logits in self.logits(image):
            labelled = labels != ignored
            scores = logits.permute(0, 2, 3, 1)[labelled]
            own = labels[labelled]
            of_each = scores.logsumexp(1) - scores.gather(1, own[:, None])[:, 0]
            share = self.class_weights[own]
            losses.append((share * of_each).sum() / share.sum())
        return losses[0] + 0.4 * losses[1], losses[1]

    @torch.no_grad()
    def step(self, number: int, total: int, lr: float, head_mult: float, decay: float) -> None:
        """Take a step of SGD with momentum by the gradients, which stay, at the rate of step `number` of `total`."""
        rate = lr * (1 - number / total) ** 0.9
        for name, weight in self.trained.items():
            assert weight.grad is not None
            self.velocity[name] = 0.9 * self.velocity[name] + weight.grad + decay * weight
            weight -= rate * (1 if name.startswith("backbone.") else head_mult) * self.velocity[name]


def random_weights(style: Style, depth: int = 50, classes: int = 5, seed: int = 0) -> Weights:
    """Return float32 weights and statistics by which signals stay of size one."""
    torch.manual_seed(seed)
    weights = raw_weights(style, depth, classes)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    Reference(weights, style, calibrate=True).logits(image)
    return weights


def raw_weights(style: Style, depth: int = 50, classes: int = 5) -> Weights:
    """Return random weights, statistics not set yet; the heads are narrow, 32 channels, keys 16 and auxiliary 24."""
    stem = (32, 32, 64) if style is MMSEG else (64, 64, 128)
    weights: Weights = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int = 1, bias: bool = False) -> None:
        spread = (2 / inputs) ** 0.5 / kernel
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel) * spread
        if bias:
            weights[f"{name}.bias"] = torch.randn(outputs) * 0.3

    def norm(name: str, width: int) -> None:
        sign = torch.where(torch.rand(width) < 0.3, -1.0, 1.0)
        weights[f"{name}.weight"] = torch.empty(width).uniform_(0.5, 1.2) * sign
        weights[f"{name}.bias"] = torch.randn(width) * 0.3
        weights[f"{name}.running_mean"], weights[f"{name}.running_var"] = (
            torch.zeros(width),
            torch.ones(width),
        )

    for i, (inputs, outputs) in enumerate(zip((3, *stem[:2]), stem, strict=True), 1):
        conv(f"backbone.resinit.conv{i}", inputs, outputs, 3)
        norm(f"backbone.resinit.bn{i}", outputs)
    inputs = stem[-1]
    for stage, (count, width) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512), strict=True), 1):
        for i in range(count):
            name = f"backbone.layer{stage}.{i}"
            for part, a, b, kernel in ((1, inputs, width, 1), (2, width, width, 3), (3, width, 4 * width, 1)):
                conv(f"{name}.conv{part}", a, b, kernel)
                norm(f"{name}.bn{part}", b)
            if i == 0:
                conv(f"{name}.downsample.0", inputs, 4 * width)
                norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    conv("isa_head.0", 2048, 32, 3)
    norm("isa_head.1", 32)
    for block in ("long", "short"):
        name = f"isa_head.2.stages.0.{block}_range_sa"
        for part in ("f_key", "f_query"):
            for i, a in ((0, 32), (2, 16)):
                conv(f"{name}.{part}.{i}", a, 16)
                norm(f"{name}.{part}.{i + 1}", 16)
        conv(f"{name}.f_value", 32, 32, bias=style is MMSEG)
        conv(f"{name}.W.0", 32, 32)
        norm(f"{name}.W.1", 32)
    conv("isa_head.2.conv_bn.0", 64, 32)
    norm("isa_head.2.conv_bn.1", 32)
    conv("cls_head", 32, classes, bias=True)
    conv("dsn_head.0", 1024, 24, 3)
    norm("dsn_head.1", 24)
    conv("dsn_head.3", 24, classes, bias=True)
    return weights


def counted(weights: Weights) -> Weights:
    """Add what torch's norms count and InPlaceABN does not."""
    norms = [n.removesuffix("running_mean") for n in weights if n.endswith("running_mean")]
    return weights | {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}


def with_torch_norms(weights: Weights) -> Weights:
    """Name the norms of the heads as openseg's torchbn and torchsyncbn do, a level deeper."""
    norms = r"((isa_head|dsn_head)\.1|f_(key|query)\.[13]|W\.1|conv_bn\.1)\."
    return {re.sub(norms, r"\1.0.", name): value for name, value in counted(weights).items()}


def as_mmseg(weights: Weights) -> Weights:
    """Name everything as mmsegmentation does."""
    rules = [
        (r"resinit\.conv([123])", lambda m: f"stem.{3 * int(m[1]) - 3}"),
        (r"resinit\.bn([123])", lambda m: f"stem.{3 * int(m[1]) - 2}"),
        (r"^isa_head\.0", r"decode_head.in_conv.conv"),
        (r"^isa_head\.1", r"decode_head.in_conv.bn"),
        (r"^isa_head\.2\.stages\.0\.long_range_sa", r"decode_head.global_relation"),
        (r"^isa_head\.2\.stages\.0\.short_range_sa", r"decode_head.local_relation"),
        (r"f_(key|query)\.([02])", lambda m: f"{m[1]}_project.{int(m[2]) // 2}.conv"),
        (r"f_(key|query)\.([13])", lambda m: f"{m[1]}_project.{int(m[2]) // 2}.bn"),
        (r"f_value", r"value_project"),
        (r"W\.0", r"output_project.conv"),
        (r"W\.1", r"output_project.bn"),
        (r"^isa_head\.2\.conv_bn\.0", r"decode_head.out_conv.conv"),
        (r"^isa_head\.2\.conv_bn\.1", r"decode_head.out_conv.bn"),
        (r"^cls_head", r"decode_head.conv_seg"),
        (r"^dsn_head\.0", r"auxiliary_head.convs.0.conv"),
        (r"^dsn_head\.1", r"auxiliary_head.convs.0.bn"),
        (r"^dsn_head\.3", r"auxiliary_head.conv_seg"),
    ]
    renamed = {}
    for name, value in counted(weights).items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)  # type: ignore[arg-type]
        renamed[name] = value
    return renamed

"""A package of a user's own, written by the fixture `ownlab` into a folder of a test."""

OWNLAB = """
import math
from subprocess import Popen

import numpy as np
import torch
from lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

open("ran", "a").close()


class Gate(nn.Module):
    def __init__(self, channels, gain: float = 1.0, name="gate", sizes=(1,)):
        super().__init__()
        self.out_channels = channels
        self.gain = torch.linspace(0, gain, 3)[-1].item()  # cannot be run on meta
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.gain * self.point(x)


class Open(nn.Module):
    def __init__(self, channels, **more):
        super().__init__()
        self.out_channels = channels
        self.weight = nn.Parameter(torch.rand(more["size"]))

    def forward(self, x):
        return x * self.weight.sum()


class Net(nn.Module):
    def __init__(self, width=6, weights=None, pretrained=False):
        super().__init__()
        if weights or pretrained:
            open(weights or "pretrained").close()
        self.channels = [3, width]
        self.conv = nn.Conv2d(3, width, 3, 4, 1)

    def forward(self, image):
        return [image.float(), self.conv(image / 255)]


class Bare(nn.Module):
    def __init__(self, channels, rank=None, label="not for it"):
        super().__init__()
        assert label == "not for it"
        self.point = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.point(x)


def plain(logits, target, weight=1.0):
    assert logits.shape[-2:] == target.shape[-2:]
    return weight * nn.functional.cross_entropy(logits, target, ignore_index=255)


def map_of_losses(logits, target):
    return nn.functional.cross_entropy(logits, target, ignore_index=255, reduction="none")


def resizing(logits, target, align_corners):
    logits = nn.functional.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=align_corners)
    return plain(logits, target)


def not_resizing(logits, target, align_corners):
    return plain(logits, target)


class FailingNet(Net):
    def forward(self, image):
        return [image, self.conv(image[:, :2] / 255)]


class FailingGate(Gate):
    def forward(self, x):
        return x[self.heads]


class Heads(Gate):
    def __init__(self, channels, gain: float = 1.0, fault="assert"):
        assert fault != "assert"
        super().__init__(channels, {}[fault])


class WrongNet(Net):
    def forward(self, image):
        return [image, self.conv(image / 255), 5]


class WrongGate(Gate):
    def forward(self, x):
        return x[..., 1:]


class Lazy(Gate):
    def __init__(self, channels, gain: float = 1.0):
        super().__init__(channels, gain)
        self.point = nn.LazyConv2d(channels, 1)


class NoChannels(nn.Module):
    def __init__(self, width):
        super().__init__()


def make(channels, gain: float = 1.0):
    return Gate(channels)


class Shapes:
    # two classes: a bright square on a dark ground

    def __init__(self, split, length: int = 4, fault: str = ""):
        self.length, self.fault, self.split = length, fault, split

    def __len__(self):
        return self.length

    def load(self, index):
        mask = np.zeros((40, 48), np.uint8)
        mask[index : index + 20, :20] = 1
        image = np.stack([200 * mask] * 3, axis=2)
        if self.fault == "image":
            image = image / 255
        if self.fault == "labels":
            mask[0, 0] = 7
        if self.fault == "mask":
            mask = mask.astype(np.int64)
        if self.fault == "loaded":
            return image
        return image, None if self.fault == "unlabelled" and self.split == "test" else mask


def shapes(split, length: int = 4):
    return None if split == "test" else Shapes(split, length)


def failing(split, length: int = 4):
    raise KeyError(split)


def no_source(split):
    return [1, 2]


class Tensors(Dataset):
    def __init__(self, source, fault, mask_scale=1):
        self.source, self.fault, self.mask_scale = source, fault, mask_scale

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        image, mask = (torch.from_numpy(part) for part in self.source.load(index))
        if self.fault == "float":
            image = image.float()
        mask = mask.repeat_interleave(self.mask_scale, 0).repeat_interleave(self.mask_scale, 1)
        sample = {"image": image.permute(2, 0, 1), "mask": mask.long() + (9 if self.fault == "labels" else 0)}
        return sample


class ShapesData(LightningDataModule):
    def __init__(self, batch_size: int = 2, fault: str = "", mask_scale: int = 1):
        super().__init__()
        self.batch_size, self.fault, self.mask_scale = batch_size, fault, mask_scale

    def setup(self, stage):
        self.data = Tensors(Shapes(stage), self.fault)
        self.val_data = Tensors(Shapes(stage), self.fault, self.mask_scale)

    def train_dataloader(self):
        return DataLoader(self.data, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_data, self.batch_size)


class Transfers(ShapesData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Plain:
    def __init__(self):
        open("built", "w").close()


def function(channels):
    open("built", "w").close()
"""

CONF = {
    "attention/gate.yaml": "_target_: ownlab.Gate\n_partial_: true\ngain: 2.0\n",
    "data/shapes.yaml": """\
defaults: [_common]
name: shapes
num_classes: 2
crop_size: [32, 32]
source:
  _target_: ownlab.shapes
  length: 5
""",
    "data/module.yaml": """\
defaults: [_module]
name: own_module
num_classes: 2
crop_size: [40, 48]
classes: [ground, square]
module:
  _target_: ownlab.ShapesData
  batch_size: 2
""",
    "backbone/net.yaml": "_target_: ownlab.Net\nwidth: 5\n",
}

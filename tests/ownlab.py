"""A package of a user's own, written by the fixture `ownlab` into a folder of a test."""

OWNLAB = """
import math
from subprocess import Popen

import torch
from torch import nn

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
    def __init__(self, width=6):
        super().__init__()
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


class WrongNet(Net):
    def forward(self, image):
        return [image, self.conv(image / 255), 5]


class WrongGate(Gate):
    def forward(self, x):
        return x[..., 1:]


class NoChannels(nn.Module):
    def __init__(self, width):
        super().__init__()


def make(channels, gain: float = 1.0):
    return Gate(channels)


class Plain:
    def __init__(self):
        open("built", "w").close()


def function(channels):
    open("built", "w").close()
"""

CONF = {
    "attention/gate.yaml": "_target_: ownlab.Gate\n_partial_: true\ngain: 2.0\n",
    "backbone/net.yaml": "_target_: ownlab.Net\nwidth: 5\n",
}

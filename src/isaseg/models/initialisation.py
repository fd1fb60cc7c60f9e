"""How the heads of a network begin: as torch initialises its layers, or as mmsegmentation or PaddleSeg do.

- `torch`: nothing is changed. openseg leaves its heads to torch as well (lib/models/nets/isanet.py).
- `mmseg`: a convolution that is followed by a batch norm begins as Kaiming normal by its fan-out (mmcv 2.1.0,
  cnn/bricks/conv_module.py, `init_weights`), the classifier as normal of 0.01 with a bias of 0 (mmsegmentation 1.2.2,
  models/decode_heads/decode_head.py, `init_cfg`). All others, the projection of the values too, are left to torch.
- `paddleseg`: all convolutions begin as normal of sqrt(2 / fan-in), with biases of 0: what Paddle does where nothing is
  said (python/paddle/nn/layer/conv.py, `_get_default_param_initializer`), and paddleseg/models/isanet.py says nothing.

Batch norms begin with a weight of 1 and a bias of 0 in all of them.
"""

from itertools import pairwise
from typing import Literal, get_args

from torch import nn

from isaseg.models.norms import is_norm

Init = Literal["torch", "mmseg", "paddleseg"]


def initialise(head: nn.Module, init: Init) -> None:
    """Draw the weights of a head anew, its context module included; a head has a `classifier`.

    A convolution counts as followed by a norm if it is so in an `nn.Sequential`.

    Raises:
        ValueError: If `init` is unknown.
    """
    if init not in get_args(Init):
        raise ValueError(f"expected init to be one of {', '.join(get_args(Init))}, got {init=}")
    if init == "mmseg":
        for part in head.modules():
            for layer, following in pairwise(part) if isinstance(part, nn.Sequential) else ():
                if isinstance(layer, nn.Conv2d) and is_norm(following):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    _clear_bias(layer)
        assert isinstance(head.classifier, nn.Conv2d)
        nn.init.normal_(head.classifier.weight, std=0.01)
        _clear_bias(head.classifier)
    if init == "paddleseg":
        for part in head.modules():
            if isinstance(part, nn.Conv2d):
                fan_in = part.in_channels * part.kernel_size[0] * part.kernel_size[1]
                nn.init.normal_(part.weight, std=(2 / fan_in) ** 0.5)
                _clear_bias(part)


def _clear_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)

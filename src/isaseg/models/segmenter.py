"""The whole network: from a uint8 RGB image to logits of the same size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from isaseg.errors import CheckpointError
from isaseg.models.backbone import Backbone, check_image
from isaseg.models.description import described_parts, differences, part_name
from isaseg.models.fuse import fuse
from isaseg.models.head import AuxHead, ContextHead
from isaseg.models.hub import CARD, check_card, model_card, read_shared
from isaseg.models.initialisation import Init, initialise
from isaseg.models.norms import ABN_SLOPE, Norm, make_leaky, set_norms
from isaseg.models.tensor_files import save_folder


class Segmenter(nn.Module, ModelHubMixin):
    """Backbone, context head and optional auxiliary head.

    `save_pretrained(FOLDER)` and `push_to_hub("USER/NAME")` share it with a model card, `from_pretrained` loads it again.

    Args:
        backbone: Returns a list of feature maps; the last feeds `head`, the one before it `aux_head`.
        head: Context head.
        aux_head: Auxiliary head, for training only.
        align_corners: How logits are resized; False by default in mmsegmentation, True in openseg.

    Attributes:
        description: What `build_described` built it from; None for any other network, and for a fused one.
    """

    description: dict[str, Any] | None = None

    def __init__(
        self,
        backbone: Backbone,
        head: ContextHead,
        aux_head: AuxHead | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.align_corners = align_corners

    def forward(self, image: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Return logits (B, K, H, W) for `image`, uint8 RGB (B, 3, H, W).

        Args:
            size: (H, W) of the logits, if it differs from that of `image`: labels may not have been resized with it. The
                logits are then resized twice, as in mmsegmentation.

        Raises:
            ValueError: If the images are of another type or shape, e.g. already normalised.
        """
        logits = self._resize(self.coarse(image), image.shape[-2:])
        return logits if size is None or size == image.shape[-2:] else self._resize(logits, size)

    def coarse(self, image: Tensor, normalised: bool = False) -> Tensor:
        """Return logits (B, K, h, w) at the head's own resolution; `image` and errors as in `forward`.

        With `normalised`, `image` is what `backbone.normalise` returns, floating point (B, 3, H, W), perhaps resized or
        padded since, and goes to `backbone.features`.
        """
        if not normalised:
            check_image(image)
        features = self.backbone.features(image) if normalised else self.backbone(image)
        logits: Tensor = self.head(features[-1])
        return logits

    def coarse_with_aux(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits and auxiliary logits (None without that head), each at its own resolution.

        `image` and errors as in `forward`.
        """
        check_image(image)
        features = self.backbone(image)
        logits: Tensor = self.head(features[-1])
        return logits, None if self.aux_head is None else self.aux_head(features[-2])

    def fuse(self) -> "Segmenter":
        """Return a copy for inference: batch norms folded into the convolutions, attention blocks in fewer products.

        It computes the same function up to rounding, on any device, under autocast and in exports. It is in evaluation
        mode, has no auxiliary head, its parameters take no gradients, and its weights are as `channels_last` puts them.
        This network stays as it is, and later changes of its weights do not reach the copy.
        """
        fused = FusedSegmenter(fuse(self.backbone), fuse(self.head), align_corners=self.align_corners)
        return fused.eval().channels_last()

    def channels_last(self) -> Self:
        """Return this network, the weights of its convolutions now in channels-last memory, as the maps are.

        Otherwise a GPU reorders them in every convolution. Parameters stay the same objects with the same values, and
        load what was saved in any layout. On a CPU it takes the same time, and rounds other digits in backward passes.
        """
        for weight in self.parameters():
            if weight.ndim == 4:
                # unlike `to`, it leaves 1x1 and depthwise ones as they are, and so as DDP finds their gradients
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no argument of the caller's builds anything
        cls, name: str | Path, *, revision: str | None = None, **download: Any
    ) -> "Segmenter":
        """Return the network of a folder that `save_pretrained` wrote, or of a repository of the hub with such files.

        They may come from a stranger; see `load_file` and `build_described`.

        Args:
            name: The folder, or USER/NAME or USER/NAME@REVISION on the hub; a folder of that name wins.
            revision: A branch, tag or commit of the repository.
            **download: token, cache_dir, force_download and local_files_only, as huggingface_hub has them.

        Returns:
            The network in evaluation mode, float32, on the CPU.

        Raises:
            CheckpointError: If the files cannot be had or are refused; names the folder.
        """
        description, weights = read_shared(name, revision, **download)
        try:
            return network_of(description, fitting(description, weights))
        except CheckpointError as error:
            raise CheckpointError(f"cannot load '{name}': {error}") from error

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card, README.md.

        Args:
            save_directory: The folder. Older files of these names are replaced.
            **kwargs: `model_card_kwargs={"run": ...}`, as `model_card` takes it, and the rest of `ModelHubMixin`.

        Raises:
            CheckpointError: If the network would not load again, or the folder has a README.md of something else.
            OSError: If a file cannot be written.
        """
        if self.description is None:
            raise CheckpointError(
                "expected a network with a `description`, as load_segmenter and from_pretrained return it, got a fused "
                "one or one that was built otherwise; share the network that was loaded"
            )
        check_described(self.description, self)
        check_card(Path(save_directory))
        return super().save_pretrained(save_directory, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_folder(self, self.description, save_directory)
        # the mixin would keep an older one, which may have the scores of other weights
        (save_directory / CARD).unlink(missing_ok=True)

    def generate_model_card(self, run: Mapping[str, Any] | None = None) -> ModelCard:
        """Return the model card; `run` as `model_card` takes it."""
        return ModelCard(model_card(self.description or {}, run or {}))

    def _resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=self.align_corners)


class FusedSegmenter(Segmenter):
    """A network for inference; see `Segmenter.fuse`."""

    def train(self, mode: bool = True) -> Self:
        """Accept evaluation mode alone.

        Raises:
            RuntimeError: If training mode is requested: the norms have no statistics any more.
        """
        if mode:
            raise RuntimeError(
                "expected a network with its batch norms, got a fused one; train the network it was made from"
            )
        return super().train(mode)


def build_segmenter(
    backbone: Backbone,
    num_classes: int,
    attention: Callable[[int], nn.Module],
    channels: int = 512,
    dropout: float = 0.1,
    aux_channels: int | None = 256,
    align_corners: bool = False,
    negative_slope: float = 0.0,
    norm: Norm = "batch",
    init: Init = "torch",
) -> Segmenter:
    """Build a `Segmenter` whose widths follow from the backbone.

    Args:
        backbone: Returns the feature maps.
        num_classes: K.
        attention: Builds the context module for `channels`.
        channels: Width of the head.
        dropout: Of both heads.
        aux_channels: Width of the auxiliary head; None means no such head.
        align_corners: As in `Segmenter`.
        negative_slope: Slope of the heads' activations below zero; 0 is ReLU.
        norm: `batch`, or `inplace_abn` as in openseg's master: all batch norms, those of the backbone too, multiply by
            |weight| + eps, and the activations of the heads have a slope of 0.01 below zero.
        init: How the heads begin; see `isaseg.models.initialisation`.

    Raises:
        ValueError: If the backbone has no `channels` or a single map where there is to be an auxiliary head, `norm` or
            `init` is unknown, or a norm is of a kind that cannot be `inplace_abn`.
    """
    widths = getattr(backbone, "channels", None)
    if (
        not isinstance(widths, list | tuple)
        or not widths
        or not all(type(c) is int and c > 0 for c in widths)
    ):
        raise ValueError(
            f"expected a backbone with `channels`, a list of the channels of each map that it returns, got {widths!r} "
            f"of {type(backbone).__name__}; see docs/your-own-module.md"
        )
    head = ContextHead(backbone.channels[-1], channels, num_classes, attention, dropout)
    aux_head = None
    if aux_channels is not None:
        if len(backbone.channels) < 2:
            raise ValueError(
                f"expected a backbone of at least two maps for the auxiliary head, got {backbone.channels=}; "
                "add a stage to backbone.out_indices or set head.aux_channels=null"
            )
        aux_head = AuxHead(backbone.channels[-2], num_classes, aux_channels, dropout)
    segmenter = Segmenter(backbone, head, aux_head, align_corners)
    slope = ABN_SLOPE if norm == "inplace_abn" else negative_slope
    for part in (head, aux_head) if aux_head is not None else (head,):
        initialise(part, init)
        if slope:
            make_leaky(part, slope)
    set_norms(segmenter, norm)
    return segmenter


def build_described(description: Any) -> Segmenter:
    """Build the network that a file, perhaps of a stranger, describes, with random weights; see `described_parts`.

    Raises:
        CheckpointError: If the description is refused, or the network cannot be built.
    """
    backbone, arguments = described_parts(description)
    try:
        segmenter = build_segmenter(backbone(), **arguments)
    except Exception as error:  # constructors raise anything for an argument that does not fit
        raise CheckpointError(
            f"expected the description of a network that can be built, got one that cannot: {error}"
        ) from error
    segmenter.description = description
    return segmenter


def check_described(description: dict[str, Any], segmenter: Segmenter) -> None:
    """Check that `network_of` will build a network again from its description.

    Raises:
        CheckpointError: If the description is refused, or that of another network.
    """
    with torch.device("meta"):
        built = build_described(description).state_dict()
    if listed := differences(built, segmenter.state_dict(), str):
        raise CheckpointError(
            f"expected parts that are built again from their arguments alone, got other tensors: {listed}"
        )


def fitting(
    description: Any, weights: Mapping[str, Tensor], key: Callable[[str], str] = str
) -> dict[str, Tensor]:
    """Return weights under our names, from under those that `key` returns for ours.

    Raises:
        CheckpointError: If they are not all those of the network described and no other; lists every difference.
    """
    with torch.device("meta"):  # takes no memory, however large the described network is
        wanted = build_described(description).state_dict()
    if listed := differences(wanted, weights, key):
        raise CheckpointError(
            f"expected the weights of {part_name(description['backbone'])} with "
            f"{part_name(description['attention'])}, got others. {listed}. Use the whole and unchanged file"
        )
    return {name: weights[key(name)] for name in wanted}


def network_of(description: Any, weights: Mapping[str, Tensor]) -> Segmenter:
    """Return the network described, in evaluation mode, with weights that are `fitting`."""
    segmenter = build_described(description)
    segmenter.load_state_dict(weights)
    return segmenter.eval()

"""A loss: any callable of logits (B, K, H, W) and target, int64 (B, H, W), that returns a scalar."""

import torch.nn.functional as F
from torch import Tensor, nn


class DiceAndCrossEntropy(nn.Module):
    """Cross-entropy plus 1 - Dice, the mean over the classes (V-Net, arXiv 1606.04797, with its squared denominator)."""

    def __init__(self, ignore_index: int = 255, dice_weight: float = 1.0) -> None:
        super().__init__()
        self.ignore_index, self.dice_weight = ignore_index, dice_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of `logits` (B, K, H, W) against `target`, int64 (B, H, W)."""
        counts = (target != self.ignore_index)[:, None]  # (B, 1, H, W)
        truth = F.one_hot(target.where(counts[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counts
        probability = logits.float().softmax(1) * counts
        both = (probability * truth).sum((0, 2, 3))
        each = (probability.square() + truth).sum((0, 2, 3))
        dice = (2 * both + 1) / (each + 1)  # a class that does not occur counts as found
        entropy = F.cross_entropy(logits.float(), target, ignore_index=self.ignore_index)
        return entropy + self.dice_weight * (1 - dice).mean()

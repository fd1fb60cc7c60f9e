"""Which samples make up step k: a pure function of the seed, k and the rank, so that a run resumes exactly.

A plan holds all batches of a run, permutation after permutation; epochs are invisible outside.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (index of the sample, optimizer step that draws it)


class BatchPlan(Sampler[list[Key]]):
    """All training batches of a run, from batch `start` on.

    The samples are a chain of reshuffled permutations of the data set; optimizer step k takes the k-th `batch_size` of
    them. A step spans permutations only if the data set is smaller than that; otherwise the rest of each permutation is
    dropped. The samples of a step do not depend on how processes and accumulated batches share them.

    Args:
        batch_size: Samples of an optimizer step; a multiple of `world` times `accumulate`.
        steps: Number of optimizer steps.
        seed: Seed of the permutations.
        rank: Of this process, of `world` processes.
        accumulate: Batches that a process takes for a step.

    Raises:
        ValueError: If the data set is empty.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if length < 1:
            raise ValueError(f"expected at least one sample, got {length=}")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.total = steps * accumulate
        self.start = 0

    def __len__(self) -> int:
        """Return the number of batches of the whole run, whatever `start` is."""
        return self.total

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield batch `start`, `start` + 1, ...; the next iteration begins at 0 again."""
        start, self.start = self.start, 0
        permutation = lru_cache(2)(self._permutation)
        # samples of the chain that a permutation gives, all of them if one is too few for a step
        used = self.length - self.length % self.batch_size or self.length
        for batch in range(start, self.total):
            step, part = divmod(batch, self.accumulate)
            places = (divmod(step * self.batch_size + i, used) for i in range(self.batch_size))
            indices = [int(permutation(epoch)[place]) for epoch, place in places]
            yield [(i, step) for i in indices[part :: self.accumulate][self.rank :: self.world]]

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)

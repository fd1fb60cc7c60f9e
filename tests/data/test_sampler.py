"""Batch k is a pure function of seed, k and rank."""

import pytest

from isaseg.data.sampler import BatchPlan, Key


def batches(plan: BatchPlan, start: int = 0) -> list[list[Key]]:
    plan.start = start
    return list(plan)


@pytest.mark.parametrize(
    ("length", "batch_size", "accumulate"), [(10, 4, 1), (8, 4, 1), (3, 8, 1), (1, 2, 1), (10, 4, 2)]
)
def test_a_plan_from_batch_k_is_the_tail_of_the_whole_plan(
    length: int, batch_size: int, accumulate: int
) -> None:
    plan = BatchPlan(length, batch_size, 20, seed=3, accumulate=accumulate)
    whole = batches(plan)
    assert len(whole) == len(plan) == 20 * accumulate
    for start in (1, 2, 7, 19, 20):
        assert batches(plan, start) == whole[start:]


def test_start_holds_for_one_iteration_only() -> None:
    plan = BatchPlan(10, 4, 5, seed=0)
    assert len(batches(plan, 3)) == 2
    assert len(list(plan)) == len(plan) == 5


def test_each_pass_draws_no_sample_twice_and_reshuffles() -> None:
    plan = batches(BatchPlan(12, 4, 6, seed=0))
    first, second = ([i for b in plan[a : a + 3] for i, _ in b] for a in (0, 3))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert [k for b in plan for _, k in b] == [k for k in range(6) for _ in range(4)]


def test_a_small_data_set_wraps_around_whole_permutations() -> None:
    drawn = [i for batch in batches(BatchPlan(3, 8, 3, seed=0)) for i, _ in batch]
    assert all(sorted(drawn[a : a + 3]) == [0, 1, 2] for a in range(0, 24, 3))


def test_seeds_differ() -> None:
    assert batches(BatchPlan(50, 4, 5, seed=1)) != batches(BatchPlan(50, 4, 5, seed=2))


def test_a_plan_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="length=0"):
        BatchPlan(0, 4, 5, seed=0)

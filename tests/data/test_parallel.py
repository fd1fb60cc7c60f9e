"""Work in threads: in order, and given up when it is not wanted any more."""

import threading

import pytest

from isaseg.data.parallel import in_threads


def test_results_come_in_the_order_of_the_items() -> None:
    with in_threads(lambda i: i * i, range(50), "squaring", workers=4, count_bytes=int) as results:
        assert list(results) == [i * i for i in range(50)]


def test_an_interrupt_drops_what_has_not_begun() -> None:
    begun: list[int] = []
    never = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            never.wait(0.1)
        return item

    with pytest.raises(KeyboardInterrupt), in_threads(work, range(1000), "waiting", workers=2) as results:
        assert next(results) == 0
        raise KeyboardInterrupt
    assert len(begun) < 500  # a machine may pause for seconds; without giving up it would be all
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_a_bug_in_the_work_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), in_threads(lambda i: 1 // i, [1, 0, 1], "dividing") as results:
        list(results)

"""Work in threads: in order, and given up when it is not wanted any more."""

import threading

import pytest

from isaseg.data.parallel import in_threads


def test_results_come_in_the_order_of_the_items() -> None:
    assert in_threads(lambda i: i * i, range(50), "squaring", workers=4) == [i * i for i in range(50)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_is_raised_and_what_has_not_begun_is_dropped(error: type[BaseException]) -> None:
    begun: list[int] = []
    never = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise error
        never.wait(0.1)

    with pytest.raises(error):
        in_threads(work, range(1000), "waiting", workers=2)
    assert len(begun) < 500  # a machine may pause for seconds; without giving up it would be all
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]

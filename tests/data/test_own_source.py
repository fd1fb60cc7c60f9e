"""What a source of a user's own need not define, and what of it cannot be used."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isaseg.data.info import default_palette
from isaseg.data.own_source import complete
from isaseg.errors import ConfigError


class Bare:
    """The least that a source must have."""

    def __len__(self) -> int:
        return 2

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)


@dataclass(frozen=True)
class Frozen(Bare):
    """A source whose attributes cannot be set."""

    classes: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Whole(Frozen):
    """A source that needs nothing set."""

    classes: Any = field(default_factory=lambda: ["a", "b"])
    palette: Any = field(default_factory=lambda: default_palette(("a", "b")))
    ignore_index: int = 255
    groups: tuple[tuple[int, ...], ...] = ((0,), (0, 1))
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def name(self, index: int) -> str:
        return f"own {index}"


def having(**attributes: Any) -> Any:
    """Return a bare source with attributes."""
    source = Bare()
    vars(source).update(attributes)
    return source


def test_what_a_source_leaves_out_is_filled_in() -> None:
    source = having()
    complete(source, "val", 2, 255)
    assert source.classes == ("0", "1") and source.name(1) == "val_00001"
    assert source.palette.dtype == np.uint8 and source.palette.shape == (2, 3)
    assert (source.ignore_index, source.groups, source.flip_pairs) == (255, None, ())


def test_names_and_colours_of_other_types_are_turned_into_ours() -> None:
    source = having(classes=[4, 5], palette=[[0, 0, 0], [1, 2, 255]])
    complete(source, "val", 2, 255)
    assert source.classes == ("4", "5")
    assert source.palette.dtype == np.uint8 and source.palette.tolist() == [[0, 0, 0], [1, 2, 255]]


def test_names_and_colours_of_numpy_are_plain_ones_that_a_checkpoint_holds() -> None:
    source = having(classes=np.array(["a", "b"]), palette=np.array([[0, 0, 0], [1, 2, 3]]))
    complete(source, "val", 2, 255)
    assert [type(name) for name in source.classes] == [str, str] and source.palette.dtype == np.uint8


def test_a_source_that_cannot_be_changed_may_define_everything() -> None:
    source = Whole()
    complete(source, "val", 2, 255)
    assert source.name(0) == "own 0"
    with pytest.raises(
        ConfigError, match="object that has palette, or lets it be set, got Frozen: cannot assign"
    ):
        complete(Frozen(), "val", 2, 255)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (SimpleNamespace(load=len), "with __len__ and load.*got SimpleNamespace for the split val"),
        (
            having(classes="abc"),
            "expected data.num_classes=3, the number of class names, got data.num_classes=2",
        ),
        (having(classes=None), "expected a list of names as classes of data.source, got None"),
        (having(ignore_index=0), "expected data.ignore_index=0, got data.ignore_index=255"),
        (
            having(palette=[[0, 0, 0]]),
            "palette of data.source as one RGB triple of 0 to 255 for each of 2 classes",
        ),
        (having(palette=[[0, 0], [1, 2, 3]]), "one RGB triple"),
        (having(palette=[[0, 0, 0], [1, 2, 256]]), "one RGB triple"),
        (having(palette=[[0, 0, 0], [0.1, 0.2, 0.3]]), "one RGB triple"),
    ],
)
def test_what_does_not_agree_is_refused(source: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        complete(source, "val", 2, 255)

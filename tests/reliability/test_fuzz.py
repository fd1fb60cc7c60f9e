"""Files damaged at random: each is refused by name or does no harm, and labels are never silently wrong."""

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isaseg.data.dataset import SegmentationDataset
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.sets.folder import folder
from isaseg.data.source import FileSource
from isaseg.errors import DataError
from tests import fakes
from tests.reliability.small import STRESS

A_TIME = 100  # files of an example


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return the bytes with up to eight changes: bits, bytes, holes, insertions, copies of a part, the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at, length = rng.randrange(len(changed) + 1), rng.randrange(1, 20)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice((0, 255, rng.randrange(256)))
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = rng.randbytes(length)
            case 4:
                start = rng.randrange(len(changed) + 1)
                changed[at : at + length] = changed[start : start + length]
            case 5 if rng.random() < 0.3:
                del changed[at:]
    return bytes(changed)


@dataclass(frozen=True)
class Kind:
    """A file of one sample, all others whole."""

    source: FileSource
    path: Path
    content: bytes
    checked: bool  # a checksum in the file tells damage


SOURCES: dict[str, tuple[Callable[..., Path], Callable[..., FileSource | None]]] = {
    "palette": (fakes.make_fake_folder, partial(folder, classes=["a", "b", "c"])),
    "deep": (partial(fakes.make_fake_folder, deep=True), partial(folder, classes=["a", "b", "c"])),
    "grey": (partial(fakes.make_fake_coco_stuff, release="164k"), partial(coco_stuff, release="164k")),
    "matlab": (fakes.make_fake_coco_stuff, coco_stuff),
    "jpeg": (fakes.make_fake_folder, partial(folder, classes=["a", "b", "c"])),
}


@pytest.fixture(scope="module", params=SOURCES)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    make, load = SOURCES[request.param]
    source = load(split="train", root=str(make(tmp_path_factory.mktemp(request.param), n=1)))
    assert source is not None
    path = source.pairs[0].image if request.param == "jpeg" else source.pairs[0].mask
    assert path is not None
    return Kind(source, path, path.read_bytes(), request.param not in ("matlab", "jpeg"))


@settings(max_examples=40 if STRESS else 3, deadline=None, database=None)
@given(seed=st.integers(0, 2**64))
def test_d3_a_file_damaged_at_random_is_refused_by_name_or_gives_a_sample(seed: int, kind: Kind) -> None:
    """300 of each kind, 4000 by `make test-stress`; with a checksum, labels are those that were written, or none."""
    rng, data = random.Random(seed), SegmentationDataset(kind.source)
    try:
        kind.path.write_bytes(kind.content)
        whole = data[0]
        for _ in range(A_TIME):
            kind.path.write_bytes(mutated(kind.content, rng))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow and SciPy, about what they then refuse
                try:
                    sample = data[0]
                except DataError as error:
                    assert str(kind.path) in str(error)
                    assert "\n" not in str(error)
                    continue
            assert sample["mask"].shape == sample["image"].shape[1:]
            assert sample["image"].dtype == whole["image"].dtype
            labels = set(sample["mask"].unique().tolist())
            assert labels <= {*range(len(kind.source.classes)), kind.source.ignore_index}
            if kind.checked:
                assert np.array_equal(sample["mask"], whole["mask"])
    finally:
        kind.path.write_bytes(kind.content)

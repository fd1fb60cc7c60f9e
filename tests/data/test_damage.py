"""What goes wrong with files, in every data set: refused before training, by name, with what to do."""

import logging
import re
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.check import check_files, size_fault
from isaseg.data.source import FileSource
from isaseg.errors import DataError
from tests.data.cases import BY_NAME, CASES, SHARED, Case, every_case, mask_of
from tests.reliability.small import STRESS


@pytest.fixture
def root(tmp_path: Path, case: Case) -> Path:
    """Give a fake of the data set in a folder of its own."""
    return case.fake(tmp_path)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the labels of a mask again, changed, in the format that they had."""
    if path.suffix == ".mat":
        content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
        key = "S" if "S" in content else "LabelMap"
        scipy.io.savemat(path, {**content, key: change(content[key])})
        return
    with Image.open(path) as picture:
        labels, palette = np.asarray(picture), picture.getpalette()
    changed = Image.fromarray(change(labels.copy()))
    if palette is not None:
        changed.putpalette(palette)
    changed.save(path)


def truncated(source: FileSource, case: Case, mask: bool = False) -> Path:
    path = mask_of(source) if mask else source.pairs[0].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def other_size(source: FileSource, case: Case) -> Path:
    rewrite(mask_of(source), lambda labels: np.ascontiguousarray(labels[:, 1:]))
    return mask_of(source)


def unknown_id(source: FileSource, case: Case) -> Path:
    def put(labels: np.ndarray) -> np.ndarray:
        labels[0, :3] = case.wrong_id
        return labels

    rewrite(mask_of(source), put)
    return mask_of(source)


@every_case
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_samples_pass(case: Case, split: str) -> None:
    if case.real is None or not (SHARED / "data" / case.real).is_dir():
        pytest.skip("no real samples here")
    check_files(case.load(SHARED / "data" / case.real, split))


SPOILT: dict[str, tuple[Callable[[FileSource, Case], Path], str, str]] = {
    "image": (truncated, "readable file", "file"),
    "mask": (partial(truncated, mask=True), "readable file", "file"),
    "size": (other_size, "image and mask of one size, got .*x.* in image=.* and .*x.* in mask=", "sizes"),
    "id": (unknown_id, "got the id ID in 3 pixels", "ids"),
}
# one with masks as PNG, one of Matlab: for what does not depend on the data set otherwise
TWO = CASES if STRESS else [BY_NAME["camvid"], BY_NAME["coco_stuff"]]


@pytest.mark.parametrize(
    ("case", "spoilt"), [*product(CASES, ("mask", "id")), *product(TWO, ("image", "size"))], ids=str
)
def test_d3_to_d6_a_wrong_file_is_refused_by_name(case: Case, root: Path, spoilt: str) -> None:
    spoil, message, cure = SPOILT[spoilt]
    source = case.load(root)
    path = spoil(source, case)
    message = message.replace("ID", str(case.wrong_id))
    cure = re.escape(getattr(source.info.remedies, cure))  # own files have no archive
    with pytest.raises(DataError, match=rf"({message}).*{path.name}.*{cure}") as error:
        check_files(source)
    assert str(path) in str(error.value)
    assert source.info.title in str(error.value)


@every_case
@pytest.mark.parametrize("missing", ["image", "mask"])
def test_d1_a_missing_file_is_named(case: Case, root: Path, missing: str) -> None:
    pair = case.load(root).pairs[-1]
    getattr(pair, missing).unlink()
    with pytest.raises(
        DataError, match=rf"(?s)got \d of \d pairs in data\.root=.*{missing} of.*data\.root=/path"
    ) as error:
        case.load(root)
    assert f"{missing} of '{pair.image if missing == 'mask' else pair.mask}'" in str(error.value)


@every_case
def test_d2_another_number_of_files_is_reported(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = case.load(case.fake(tmp_path))
    published = source.info.splits.get(source.split)
    with caplog.at_level(logging.WARNING):
        check_files(source)
    if case.name.startswith("folder"):
        assert (size_fault(source), caplog.text) == (None, "")
        check_files(source, strict_size=True)
        return
    title = source.info.title
    message = f"{title} {source.split} has {len(source)} images, the published split {published}: "
    message += "scores do not compare with published ones"
    assert message in caplog.text
    with pytest.raises(DataError, match=f"{message}; complete the data set, or set data.strict_size=false"):
        check_files(source, strict_size=True)


@pytest.mark.parametrize(
    ("case", "what"), [*product(CASES, ("image", "masks")), *product(TWO, ("mask", "images"))], ids=str
)
def test_d9_links_out_of_root_are_refused(case: Case, tmp_path: Path, what: str) -> None:
    root = case.fake(tmp_path / "root")
    pair = case.load(root).pairs[-1]
    assert pair.mask is not None
    path: Path = getattr(pair, what.rstrip("s"))
    path = path.parent if what.endswith("s") else path
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(
        DataError, match=rf"below data\.root='.*', got the link '.*' to '{tmp_path}/outside'; copy"
    ):
        case.load(root)

"""The report on a data set: every fault by name, every number against one that is known; the contact sheet."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from isaseg.data.index import Pair
from isaseg.data.info import DatasetInfo
from isaseg.data.sets.cityscapes import cityscapes
from isaseg.data.source import FileSource
from isaseg.data.tools.contact_sheet import contact_sheet
from isaseg.data.tools.inspection import SplitReport, as_json, inspect_sample, inspect_split, tables
from tests import fakes

SIZES = [(12, 20), (14, 16), (30, 40), (12, 20)]  # height, width
FACTS = DatasetInfo(
    "Toy",
    ("road", "car", "cow"),
    np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8),
    {0: 255, 4: 0, 7: 1, 9: 2},
    splits={"train": 9},
)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def toy(root: Path, sizes: Sequence[tuple[int, int]] = SIZES, labelled: bool = True) -> FileSource:
    """Pairs whose masks are road (raw id 4) but for two pixels of car and three ignored."""
    pairs = []
    for index, (height, width) in enumerate(sizes):
        image = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        mask = np.full((height, width), 4, np.uint8)
        mask[0, :2], mask[1, :3] = 7, 0
        name = f"a picture {index}"
        label = save(root / f"{index}.mask.png", mask) if labelled else None
        pairs.append(Pair(name, save(root / f"{index}.png", image), label))
    return FileSource(FACTS, "train", pairs)


def mask_of(source: FileSource, index: int) -> Path:
    mask = source.pairs[index].mask
    assert mask is not None
    return mask


def test_a_sound_split_is_counted_to_the_pixel(tmp_path: Path) -> None:
    source = toy(tmp_path)
    report = inspect_split(source, 2)
    total = sum(h * w for h, w in SIZES)
    assert (report.faults, report.usable) == ([], [0, 1, 2, 3])
    assert report.sizes == {(20, 12): 2, (16, 14): 1, (40, 30): 1}
    assert report.pixels.tolist() == [total - 20, 8, 0, 12], "road, car, cow, ignored"
    assert report.occurs.tolist() == [4, 4, 0, 4]
    assert report.warning is not None and "has 4 images, the published split 9: " in report.warning


def test_pixels_are_counted_exactly_however_many_there_are() -> None:
    labels = np.zeros((4097, 4097), np.uint8)  # more than float32 counts one by one
    source: Any = SimpleNamespace(
        pairs=[Pair("a", Path("a.png"), Path("a.png"))],
        decode_image=lambda _: labels,
        decode_labels=lambda _: labels,
        check_sizes=lambda *_: None,
        to_train_ids=lambda raw, _: raw,
    )
    size, pixels, faults = inspect_sample(source, 0)
    assert (size, faults) == ((4097, 4097), []) and pixels.tolist() == [4097**2] + 255 * [0]


def test_every_fault_of_every_file_is_found(tmp_path: Path) -> None:
    source = toy(tmp_path, [(12, 20)] * 8)
    masks = [mask_of(source, i) for i in range(8)]
    source.pairs[0].image.write_bytes(b"")
    masks[0].write_bytes(masks[0].read_bytes()[:50])
    save(masks[1], np.zeros((12, 19), np.uint8))
    save(masks[2], np.zeros((12, 20, 3), np.uint8))
    strange = np.full((12, 20), 4, np.uint8)
    strange[0, :5], strange[1, 0] = 34, 254
    save(masks[3], strange)
    save(masks[4], np.arange(240, dtype=np.uint8).reshape(12, 20))
    save(masks[5], np.full((10, 20), 99, np.uint8))
    masks[7].unlink()
    report = inspect_split(source, 2)
    found = [(f.name[-1], Path(f.file).name, f.text) for f in report.faults]
    assert [(name, file) for name, file, _ in found] == [
        ("0", "0.png"),
        ("0", "0.mask.png"),
        ("1", "1.mask.png"),
        ("2", "2.mask.png"),
        ("3", "3.mask.png"),
        ("4", "4.mask.png"),
        ("5", "5.mask.png"),
        ("5", "5.mask.png"),
        ("7", "7.mask.png"),
    ]
    texts = [text for *_, text in found]
    assert "readable file" in texts[0] and "readable file" in texts[1]
    assert f"20x12 in image='{source.pairs[1].image}' and 19x12 in mask='{masks[1]}'" in texts[2]
    assert "got mode='RGB'" in texts[3]
    assert f"labels 0, 4, 7, 9 in Toy, got the id 34 in 5 pixels of mask='{masks[3]}' (train)" in texts[4]
    assert "got the id 1 in 1 pixels" in texts[5]
    assert "one size" in texts[6] and "99 in 200 pixels" in texts[7]
    cures = "replace", "take the files of the official archive", "fix the file"
    assert all(any(cure in text for cure in cures) for text in texts)
    assert report.faults[4].unknown_ids == {34: 5, 254: 1}
    assert len(report.faults[5].unknown_ids) == 236
    assert report.usable == [6]
    assert report.pixels.tolist() == [12 * 20 - 5, 2, 0, 3 + 12 * 19], (
        "labels without an unknown id are counted"
    )


def rendered(reports: Sequence[SplitReport]) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    with console.capture() as captured:
        console.print(tables("Toy", reports))
    return captured.get()


def test_the_report_is_json_and_text(tmp_path: Path) -> None:
    source = toy(tmp_path)
    save(mask_of(source, 3), np.full((12, 20), 99, np.uint8))
    report = inspect_split(source, 1)
    content = json.loads(json.dumps(as_json("toy", "a/root", [report], report.faults)))
    assert (content["name"], content["root"]) == ("toy", "a/root")
    split = content["splits"]["train"]
    assert (split["images"], split["published"], split["usable"]) == (4, 9, 3)
    assert split["sizes"] == {"16x14": 1, "20x12": 2, "40x30": 1}
    assert split["classes"][1] == {"id": 1, "name": "car", "pixels": 6, "images": 3}
    assert (split["ignored_pixels"], split["ignored_in"]) == (9, 3)
    (fault,) = content["faults"]
    assert (fault["split"], fault["name"], fault["unknown_ids"]) == ("train", "a picture 3", {"99": 240})
    assert fault["file"] == str(mask_of(source, 3))
    assert len(content["warnings"]) == 1
    text = rendered([report])
    assert "16x14" in text and "40x30" in text
    car = next(line for line in text.splitlines() if "car" in line)
    assert f"{100 * 6 / 1664:.3f}" in car and " 3 " in car
    assert next(line for line in text.splitlines() if "cow" in line).split("│")[3:5] == [
        "        - ",
        "      - ",
    ]


def test_a_split_without_labels_is_looked_at_too(tmp_path: Path) -> None:
    source = toy(tmp_path, labelled=False)
    source.pairs[2].image.write_bytes(b"no image")
    report = inspect_split(source)
    assert [f.name for f in report.faults] == ["a picture 2"]
    assert report.pixels.sum() == 0
    assert "classes" not in as_json("toy", None, [report], [])["splits"]["train"]
    assert "no labels" in rendered([report])
    assert drawn(report).shape[1] == 1600


def drawn(*reports: SplitReport) -> np.ndarray:
    buffer = io.BytesIO()
    contact_sheet(reports).savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def shown(source: FileSource) -> np.ndarray:
    return drawn(inspect_split(source, 1))


def has(sheet: np.ndarray, colour: Sequence[int]) -> bool:
    return bool((sheet == np.array(colour)).all(-1).any())


def test_the_sheet_shows_each_class_in_its_colour_over_the_image(tmp_path: Path) -> None:
    source = toy(tmp_path, [(30, 40)] * 3)
    for index in range(3):
        save(source.pairs[index].image, np.full((30, 40, 3), (60, 100, 140), np.uint8))
    plain = np.full((30, 40), 4, np.uint8)
    plain[:, 20:], plain[20:] = 7, 0
    for index in range(3):
        save(mask_of(source, index), plain)
    sheet = shown(source)
    for colour in FACTS.palette[:2]:
        assert has(sheet, colour), "in the legend"
        assert has(sheet, np.round(0.5 * np.array([60, 100, 140]) + 0.5 * colour))
    assert not has(sheet, FACTS.palette[2]), "no cow"
    assert has(sheet, np.round(0.5 * np.array([60, 100, 140]) + 0.5 * 255)), "what is ignored"
    assert not has(sheet, (60, 100, 140)), "nothing is bare"


def test_samples_with_a_fault_are_not_shown(tmp_path: Path) -> None:
    source = toy(tmp_path, [(30, 40)] * 2)
    for index, colour in enumerate(((1, 2, 253), (250, 3, 4))):
        save(source.pairs[index].image, np.full((30, 40, 3), colour, np.uint8))
        save(mask_of(source, index), np.full((30, 40), 4, np.uint8))
    tints = [np.round(0.5 * np.array(c) + 0.5 * FACTS.palette[0]) for c in ((1, 2, 253), (250, 3, 4))]
    assert [has(shown(source), tint) for tint in tints] == [True, True]
    mask_of(source, 1).write_bytes(b"")
    assert [has(shown(source), tint) for tint in tints] == [True, False]
    source.pairs[0].image.write_bytes(b"")
    assert shown(source).shape[1] == 1600, "nothing left to show"


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 2)])
def test_any_shape_fits_on_the_sheet(size: tuple[int, int], tmp_path: Path) -> None:
    source = toy(tmp_path, [(2, 3)])
    save(source.pairs[0].image, np.zeros((*size, 3), np.uint8))
    save(mask_of(source, 0), np.full(size, 4, np.uint8))
    sheet = shown(source)
    assert sheet.shape[1] == 1600 and 200 < sheet.shape[0] < 1200


def test_a_sheet_of_several_splits_has_a_bounded_size(tmp_path: Path) -> None:
    root = str(fakes.make_fake_cityscapes(tmp_path, 30))
    sources = [cityscapes(split, root) for split in ("train", "val")]
    reports = [inspect_split(source) for source in sources if source is not None]
    sheet = drawn(*reports)
    for report in reports:
        report.usable = report.usable[::3]
    assert sheet.shape == drawn(*reports).shape, "ten of 30, since twelve are the most of each split"


def test_names_do_not_leave_their_tile(tmp_path: Path) -> None:
    source = toy(tmp_path, [(30, 40)] * 2)
    long = "a very long name / " * 40
    source.pairs = tuple(
        Pair(name, p.image, p.mask) for name, p in zip((long, "b\n\x1b[31m"), source.pairs, strict=True)
    )
    sheet = shown(source)
    assert (sheet[:, -3:] == 255).all() and (sheet[:, :3] == 255).all()

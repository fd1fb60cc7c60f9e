"""Own masks of every kind become the same index masks, or are refused by the name of a file, with nothing written."""

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isaseg.data.sets.folder import folder_info
from isaseg.data.tools.own_masks import OwnMasks, convert_own
from isaseg.data.tools.shapes import polygon
from isaseg.errors import ConfigError, DataError
from tests.data.tools.archives import encode_rle

CLASSES = ("background", "cat", "dog")
PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
SIZE = (12, 9)  # width, height
LABELS = np.zeros(SIZE[::-1], np.uint8)
LABELS[2:6, 3:9] = 1
LABELS[4:8, 6:12] = 2


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., list[str]]:
    """Give `convert(**fields of OwnMasks)` of the folders photos and labels, to out."""

    def called(
        classes: tuple[str, ...] = CLASSES, ignore: tuple[int, ...] = (255,), **fields: Any
    ) -> list[str]:
        info = folder_info(classes, None, ignore)
        paths = {
            key: fields.pop(key, tmp_path / name)
            for key, name in (("images", "photos"), ("masks", "labels"), ("root", "out"))
        }
        return convert_own(OwnMasks(**paths, info=info, **fields))

    return called


def photo(path: Path, flag: int = 1, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = flag
    Image.new("RGB", size, (90, 120, 30)).save(path, exif=exif)
    return path


def save(path: Path, picture: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def written(root: Path, name: str = "a") -> np.ndarray:
    with Image.open(root / "masks" / f"{name}.png") as mask:
        assert mask.mode == "L"
        return np.asarray(mask)


def in_colours(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.array(PALETTE, np.uint8)[LABELS]).convert(mode)


def with_palette(colours: list[list[int]], order: tuple[int, ...] = (0, 1, 2)) -> Image.Image:
    picture = Image.fromarray(np.array(order, np.uint8)[LABELS], "P")
    picture.putpalette(sum(colours, []))
    return picture


KINDS: dict[str, tuple[Image.Image, bool]] = {
    "RGB": (in_colours(), True),
    "RGBA": (in_colours("RGBA"), True),
    "palette by index": (with_palette([[9, 9, 9], [8, 8, 8], [7, 7, 7]]), False),
    "palette by colour": (with_palette([PALETTE[2], PALETTE[0], PALETTE[1]], (1, 2, 0)), True),
    "grey": (Image.fromarray(LABELS), False),
    "16 bits": (Image.fromarray(LABELS.astype(np.uint16)), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_give_the_same_labels(
    kind: str, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    source = photo(tmp_path / "photos" / "sub folder" / "a.JPG")
    picture, coloured = KINDS[kind]
    save(tmp_path / "labels" / "sub folder" / "a.png", picture)
    lines = convert(palette=PALETTE if coloured else None)
    assert np.array_equal(written(tmp_path / "out", "sub folder/a"), LABELS)
    assert (tmp_path / "out" / "images" / "sub folder" / "a.JPG").samefile(source)
    assert "1 pictures with masks" in lines[0] and "cat 16.67 %" in lines[1], lines
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images", "masks"]
    assert convert(palette=PALETTE if coloured else None) == lines  # again, over the same files


def test_a_mask_of_a_single_colour_is_read_by_its_colour(
    tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    """Its palette has one entry, where tools save no more than are used."""
    photo(tmp_path / "photos" / "a.jpg")
    picture = Image.new("P", SIZE)
    picture.putpalette(PALETTE[2])
    assert len(Image.open(save(tmp_path / "labels" / "a.png", picture)).getpalette() or []) == 3
    convert(palette=PALETTE)
    assert (written(tmp_path / "out") == 2).all()


@pytest.mark.parametrize(("bits", "top"), [(1, 1), (2, 3), (4, 15)])
def test_grey_of_few_bits_is_not_scaled(
    bits: int, top: int, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    labels = np.minimum(LABELS, 1) * min(top, 2)
    photo(tmp_path / "photos" / "a.jpg")
    picture = Image.fromarray(labels == 1) if bits == 1 else Image.fromarray(labels * (255 // top))
    save(tmp_path / "labels" / "a.png", picture, bits=bits)
    if bits > 1:
        path = tmp_path / "labels" / "a.png"
        path.write_bytes(grey_png(labels, bits))
    convert()
    assert np.array_equal(written(tmp_path / "out"), labels)


def grey_png(labels: np.ndarray, bits: int) -> bytes:
    """Return a PNG of grey of 2 or 4 bits, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = labels.shape
    digits = ((labels[..., None] >> np.arange(bits)[::-1]) & 1).reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in digits)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("grey", [np.minimum(LABELS, 1) * np.uint8(255), LABELS > 0], ids=["L", "1"])
def test_black_and_white_are_colours_where_a_palette_has_white(
    grey: np.ndarray, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    save(tmp_path / "labels" / "a.png", Image.fromarray(grey))
    photo(tmp_path / "photos" / "b.jpg")
    save(tmp_path / "labels" / "b.png", Image.fromarray(np.minimum(LABELS, 1).astype(np.uint16)))
    convert(classes=("white", "black"), palette=[[255, 255, 255], [0, 0, 0]])
    assert np.array_equal(written(tmp_path / "out"), LABELS == 0)
    assert np.array_equal(written(tmp_path / "out", "b"), LABELS > 0)  # 16 bits have no colours


def coco(shapes: list[tuple[int, Any]], name: str = "a.jpg", **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": name, "width": SIZE[0], "height": SIZE[1], **image}],
        "categories": [{"id": i, "name": c, "supercategory": ""} for i, c in enumerate((*CLASSES, "void"))],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": c, "segmentation": s, "iscrowd": 0, "bbox": [0, 0, 1, 1]}
            for i, (c, s) in enumerate(shapes)
        ],
    }


def labelme(shapes: list[dict[str, Any]], path: str = "..\\photos\\a.jpg", **more: Any) -> dict[str, Any]:
    return {
        "version": "5.4",
        "shapes": shapes,
        "imagePath": path,
        "imageData": None,
        "imageHeight": SIZE[1],
        "imageWidth": SIZE[0],
        **more,
    }


def cvat(shapes: str, name: str = "a.jpg", head: str = "", size: tuple[int, int] = SIZE) -> str:
    return (
        f'<?xml version="1.0" encoding="utf-8"?>{head}<annotations><version>1.1</version><meta/>'
        f'<image id="0" name="{name}" width="{size[0]}" height="{size[1]}">{shapes}</image></annotations>'
    )


DOG = LABELS == 2
RUNS = [int(run) for run in np.diff([0, *(np.flatnonzero(np.diff(DOG.T.ravel().astype(int))) + 1), DOG.size])]
ROWS = "2, 3, 1, 3, 1, 2"  # of a box of 3 x 4: 001 110 111 011
CAT_BOX = [3, 2, 9, 2, 9, 6, 3, 6]


def png_of(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


EXPORTS: dict[str, Any] = {
    "coco.json": coco([(1, [CAT_BOX]), (2, {"size": [9, 12], "counts": RUNS})]),
    "compressed.json": coco([(1, [CAT_BOX]), (2, {"size": [9, 12], "counts": encode_rle(DOG)})]),
    "two_parts.json": coco([
        (1, [[3, 2, 6, 2, 6, 6, 3, 6], [6, 2, 9, 2, 9, 6, 6, 6]]), (2, [[6, 4, 12, 4, 12, 8, 6, 8]])
    ]),
    "labelme/a.json": labelme([
        {"label": "cat", "points": [[3, 2], [9, 6]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[6, 4], [11, 7]], "shape_type": "mask", "mask": png_of(np.ones((4, 6), bool))},
    ]),
    "cvat.xml": cvat(
        '<polygon label="dog" points="6,4;12,4;12,8;6,8" z_order="2"/><tag label="seen"/>'
        '<box label="cat" xtl="3" ytl="2" xbr="9" ybr="6" z_order="1"><attribute name="x">y</attribute></box>'
    ),
    "masks.xml": cvat(
        '<box label="cat" xtl="3" ytl="2" xbr="9" ybr="6"/>'
        '<mask label="dog" rle="0, 24" left="6" top="4" width="6" height="4"/>'
    ),
}  # fmt: skip


def export(folder: Path, name: str, content: Any, encoding: str = "utf-8") -> Path:
    path = folder / "exports" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text.replace('encoding="utf-8"', f'encoding="{encoding[:6]}"'), encoding=encoding)
    return path if "/" not in name else path.parent


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_of_annotation_tools_give_the_same_labels(
    name: str, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    masks = export(tmp_path, name, EXPORTS[name])
    lines = convert(masks=masks)
    assert np.array_equal(written(tmp_path / "out"), LABELS)
    assert lines[0].startswith("annotations of ")
    convert(masks=masks, classes=("cat", "dog"), root=tmp_path / "two")  # what nothing covers is left out
    assert np.array_equal(written(tmp_path / "two"), np.array([255, 0, 1])[LABELS])
    convert(masks=masks, classes=CLASSES[:2], ignored=["dog"], root=tmp_path / "void")
    assert np.array_equal(written(tmp_path / "void"), np.array([0, 1, 255])[LABELS])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["cvat.xml", "coco.json", "labelme/a.json"])
def test_exports_may_be_saved_in_other_encodings(
    name: str, encoding: str, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    convert(masks=export(tmp_path, name, EXPORTS[name], encoding))
    assert np.array_equal(written(tmp_path / "out"), LABELS)


def test_cvat_counts_along_rows_and_labelme_draws_circles(
    tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    shape = f'<mask label="dog" rle="{ROWS}" left="1" top="2" width="3" height="4"/>'
    convert(masks=export(tmp_path, "rows.xml", cvat(shape)))
    expected = [[0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert np.array_equal(written(tmp_path / "out")[2:6, 1:4], 2 * np.array(expected))
    circle = {"label": "cat", "points": [[6, 4], [6, 7.5]], "shape_type": "circle"}
    convert(masks=export(tmp_path, "circle/a.json", labelme([circle])), root=tmp_path / "round")
    y, x = np.indices(SIZE[::-1]) + 0.5
    assert np.array_equal(written(tmp_path / "round") == 1, np.hypot(x - 6, y - 4) < 3.5)


def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre() -> None:
    """As the winding of angles says; and polygons that share an edge cover each pixel once."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(5, 40, 2)
        middle = np.array([width, height]) / 2
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        rim = middle + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(3, 30, (9, 1))
        top, left, inside = polygon(rim, height, width)
        found = np.zeros((height, width), bool)
        found[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        centres = np.indices((height, width))[::-1].transpose(1, 2, 0) + 0.5
        to = rim - centres[:, :, None]
        turns = np.angle(np.exp(1j * np.diff(np.arctan2(to[..., 1], to[..., 0]), append=0)))
        first, last = to[:, :, 0], to[:, :, -1]
        turns[..., -1] = np.angle(
            np.exp(1j * (np.arctan2(first[..., 1], first[..., 0]) - np.arctan2(last[..., 1], last[..., 0])))
        )
        assert np.array_equal(found, np.abs(turns.sum(-1)) > np.pi)
        covered = np.zeros((height, width), int)
        for a, b in zip(rim, np.roll(rim, -1, 0), strict=True):
            top, left, inside = polygon(np.array([middle, a, b]), height, width)
            covered[top : top + inside.shape[0], left : left + inside.shape[1]] += inside
        assert covered.max() <= 1 and np.array_equal(covered == 1, found)


def test_the_layout_of_the_source_is_kept_and_pictures_without_a_mask_are_a_choice(
    tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    for name in ("train/a.jpg", "val/b c.png", "val/d.jpg"):
        photo(tmp_path / "photos" / name)
    for name in ("train/a", "val/b c"):
        save(tmp_path / "labels" / f"{name}.png", Image.fromarray(LABELS))
    with pytest.raises(DataError, match=r"got none for 1: 'val/d'; .*unannotated=skip"):
        convert()
    assert not (tmp_path / "out").exists()
    assert "left out: 1 pictures without a mask" in convert(unannotated="skip")
    made = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert made == {"images/train/a.jpg", "masks/train/a.png", "images/val/b c.png", "masks/val/b c.png"}
    convert(unannotated="background")
    assert not written(tmp_path / "out", "val/d").any()
    with pytest.raises(ConfigError, match="a class background in data.classes"):
        convert(unannotated="background", classes=("sky", "cat", "dog"))
    convert(images=tmp_path / "photos" / "train", masks=tmp_path / "labels" / "train", split="test")
    assert np.array_equal(written(tmp_path / "out", "test/a"), LABELS)


@pytest.mark.parametrize("flag", range(1, 9))
def test_masks_belong_to_upright_pictures(
    flag: int, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    stored = SIZE[::-1] if flag >= 5 else SIZE
    photo(tmp_path / "photos" / "a.jpg", flag, stored)
    masks = export(tmp_path, "coco.json", EXPORTS["coco.json"])
    if 2 <= flag <= 4:
        with pytest.raises(DataError, match=rf"EXIF orientation {flag}.*a\.jpg.*data.source.exif=apply"):
            convert(masks=masks)
        assert not (tmp_path / "out").exists()
    lines = convert(masks=masks, exif="apply" if 2 <= flag <= 4 else None)
    assert np.array_equal(written(tmp_path / "out"), LABELS)
    assert any("turned by their EXIF flag" in line for line in lines) == (flag > 1)
    if flag >= 5:
        with pytest.raises(DataError, match="to be of the picture's size 9x12, got 12x9"):
            convert(masks=masks, exif="ignore")


def test_unknown_colours_are_listed_with_their_pixels(
    tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    for number in range(12):
        picture = np.asarray(in_colours()).copy()
        picture[0, :number] = 254
        picture[1, number] = [10 + number, 0, 0]
        photo(tmp_path / "photos" / f"{number:02}.jpg")
        save(tmp_path / "labels" / f"{number:02}.png", Image.fromarray(picture))
    with pytest.raises(DataError) as caught:
        convert(palette=PALETTE)
    text = str(caught.value)
    assert "[254,254,254] (66 pixels in 11 of 12 files, first '01'), [10,0,0] (1 pixels in 1 of 12" in text
    assert "and 5 more; add them" in text
    assert not (tmp_path / "out").exists()
    others = [[10 + number, 0, 0] for number in range(12)]
    convert(palette=PALETTE, ignored=[*others, [254, 254, 254]])
    assert (written(tmp_path / "out", "03") == 255).sum() == 4


def test_another_file_in_the_way_is_kept(tmp_path: Path, convert: Callable[..., list[str]]) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    save(tmp_path / "labels" / "a.png", Image.fromarray(LABELS))
    kept = save(tmp_path / "out" / "masks" / "a.png", Image.fromarray(LABELS + 1))
    before = kept.read_bytes()
    with pytest.raises(DataError, match=r"no other files of these names .* got 'masks/a.png'"):
        convert()
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [kept] and kept.read_bytes() == before


def _outside(folder: Path) -> None:
    os.symlink("/etc/hostname", folder / "labels" / "a.png")


def _write(content: bytes, name: str = "a.png") -> Callable[[Path], object]:
    return lambda folder: (folder / "labels" / name).write_bytes(content)


def _saved(picture: Image.Image, name: str = "a.png", **options: Any) -> Callable[[Path], object]:
    return lambda folder: save(folder / "labels" / name, picture, **options)


BAD_MASKS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "JPEG": (_saved(in_colours(), "a.jpg"), {"palette": PALETTE}, "got mode='RGB' in a JPEG in the mask .*a.jpg"),
    "no palette": (_saved(in_colours()), {}, r"\[0,0,0\] \(.*; give data.source.palette"),
    "black and white": (_saved(Image.fromarray(np.minimum(LABELS, 1) * 255)), {}, r"got 0 and 255 alone .*a\.png"),
    "an index": (_saved(Image.fromarray(LABELS + 5)), {}, r"got label 5 \(.*first 'a'"),
    "16 bits": (_saved(Image.fromarray(LABELS.astype(np.uint16) * 900)), {}, r"got label .*900 \("),
    "another size": (_saved(Image.fromarray(LABELS[1:])), {}, r"a mask of 12x9, as .*a.jpg' is, got 12x8"),
    "no picture": (_saved(Image.fromarray(LABELS), "b.png"), {}, r"for every mask, got none for 'b'"),
    "no image": (_write(b"no image"), {}, r"in the mask '.*a\.png'"),
    "a link": (_outside, {}, r"below masks='.*labels', got the link '.*a\.png' to '/etc/hostname'; .* point masks to"),
    "twice": (lambda f: (_saved(in_colours())(f), _saved(in_colours(), "a.bmp")(f)), {}, "one file for each name"),
    "one colour twice": (_saved(in_colours()), {"palette": [[1, 1, 1]] * 3}, "different colours"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_MASKS)
def test_masks_that_cannot_be_used_are_refused_by_name(
    fault: str, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    (tmp_path / "labels").mkdir()
    make, fields, message = BAD_MASKS[fault]
    make(tmp_path)
    with pytest.raises((DataError, ConfigError), match=message):
        convert(**fields)
    assert not (tmp_path / "out").exists()


LAUGHS = "<!DOCTYPE a [" + '<!ENTITY a0 "ha">' + "".join(
    f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9)) + "]>"  # fmt: skip
BOX = '<box label="cat" xtl="3" ytl="2" xbr="9" ybr="6"/>'
HOSTILE: dict[str, tuple[str, Any, str]] = {
    "entities": ("a.xml", cvat("&a9;", head=LAUGHS), "DOCTYPE"),
    "nested XML": ("a.xml", cvat("<g>" * 20_000 + "</g>" * 20_000), "has no label"),
    "path in XML": ("a.xml", cvat(BOX, "../../etc/passwd"), r"got none for '\.\./\.\./etc/passwd'"),
    "huge XML": ("a.xml", cvat(BOX, size=(10**9, 10**9)), "size 12x9, got 1000000000x1000000000"),
    "track": ("a.xml", "<annotations><track/></annotations>", "CVAT for images 1.1"),
    "polyline": ("a.xml", cvat('<polyline label="cat" points="1,1;2,2"/>'), "<polyline> in 'a.jpg' has no area"),
    "far": ("a.xml", cvat('<polygon label="cat" points="0,0;nan,1;1e300,9"/>'), "far outside"),
    "big mask": ("a.xml", cvat(f'<mask label="cat" rle="0,{10**16}" left="0" top="0" width="{10**8}" height="{10**8}"/>'),
                 r"shape 0 \(cat\) of 'a'"),
    "mask beside": ("a.xml", cvat('<mask label="cat" rle="0,4" left="-1" top="0" width="2" height="2"/>'), "outside of"),
    "broken XML": ("a.xml", "<annotations><image>", "no element found"),
    "path in COCO": ("a.json", coco([], "/etc/passwd"), "got none for '/etc/passwd'"),
    "huge COCO": ("a.json", coco([(1, [CAT_BOX])], width=10**12), "got 1000000000000x9"),
    "huge runs": ("a.json", coco([(1, {"size": [10**6, 10**6], "counts": [0, 10**12]})]), "a picture of"),
    "wrong runs": ("a.json", coco([(1, {"size": [9, 12], "counts": [5, 10**15]})]), "108 pixels in all"),
    "nested JSON": ("a.json", "[" * 100_000, "recursion limit"),
    "not a number": ("a.json", json.dumps(coco([(1, [[float("nan")] * 6])])), "segmentation"),
    "odd numbers": ("a.json", coco([(1, [[1, 2, 3, 4, 5]])]), "a polygon has 5 numbers"),
    "boxes alone": ("a.json", coco([(1, [])]), "a box is not a mask"),
    "nothing": ("a.json", coco([(1, [CAT_BOX])]) | {"images": []}, "belongs to no image"),
    "unknown": ("a.json", coco([(3, [CAT_BOX])]), r"got void \(1 shapes in 1 of 1 files, first 'a'\)"),
    "twice": ("a.json", coco([]) | {"images": [{"id": i, "file_name": "a.jpg"} for i in (1, 2)]}, "got 'a' twice"),
    "path in LabelMe": ("me/a.json", labelme([], "../../etc/passwd"), r"imagePath .* '\.\./\.\./etc/passwd'"),
    "huge LabelMe": ("me/a.json", labelme([{"label": "cat", "points": [[0, 0], [10**6 - 1, 10**6 - 1]],
                     "shape_type": "mask", "mask": png_of(np.ones((2, 2), bool))}]), "a mask outside"),
    "a line": ("me/a.json", labelme([{"label": "cat", "points": [[0, 0], [4, 4]], "shape_type": "line"}]), "no area"),
    "no base64": ("me/a.json", labelme([{"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "mask",
                  "mask": "?"}]), "not base64"),
    "no PNG": ("me/a.json", labelme([{"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "mask",
               "mask": "AAAA"}]), "a mask that is not a PNG as shape 0"),
    "outside": ("a.json", coco([(1, [[-9, -9, -5, -9, -5, -5]])]), "a polygon outside of"),
    "infinite": ("a.xml", cvat('<mask label="cat" rle="1,3" left="0" top="inf" width="2" height="2"/>'),
                 "the image 'a.jpg' cannot be read: cannot convert float infinity"),
    "image twice": ("a.json", coco([(1, [CAT_BOX])]) | {"images": [{"id": 1, "file_name": n} for n in "ab"]},
                    "the image id 1 is there 2 times"),
    "category twice": ("a.json", coco([(1, [CAT_BOX])]) | {"categories": [{"id": 1, "name": n} for n in ("cat", "dog")]},
                       "the category id 1 is there 2 times"),
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_exports_of_strangers_are_refused_by_name(
    attack: str, tmp_path: Path, convert: Callable[..., list[str]]
) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    name, content, message = HOSTILE[attack]
    masks = export(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        convert(masks=masks)
    assert str(masks) in str(caught.value)
    assert not (tmp_path / "out").exists()

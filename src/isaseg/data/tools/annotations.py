"""What annotation tools export: LabelMe's JSON files, one JSON of COCO, one XML of CVAT; read as shapes.

No path in these files is ever opened.
"""

import base64
import binascii
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Annotated, TypeVar
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from isaseg.data.tools.detail import decode_rle
from isaseg.data.tools.shapes import Drawing, Placed, Shape, corners, polygon
from isaseg.errors import DataError

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


def read_annotations(path: Path) -> tuple[str, list[Drawing]]:
    """Return the format of an export, for people, and the drawings in it.

    Args:
        path: A folder of LabelMe's JSON files, one JSON of COCO, or one XML of CVAT ("CVAT for images 1.1").

    Raises:
        DataError: If it is none of these, damaged, or holds a shape that has no area.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.json") if not file.name.startswith("."))
        return "LabelMe", [
            _read(_labelme, file, os.path.splitext(file.relative_to(path))[0]) for file in files
        ]
    if path.read_bytes()[:200].lstrip(b"\xef\xbb\xbf\xff\xfe\0 \r\n\t").startswith(b"<"):  # in UTF-16 too
        return "CVAT", _read(_cvat, path)
    return "COCO", _read(_coco, path)


def _read(read: Callable[..., "Result"], path: Path, *args: str) -> "Result":
    try:
        return read(path, *args)
    except (OSError, ValueError, OverflowError, ElementTree.ParseError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(
            f"expected masks= as a folder of masks or of LabelMe's JSON files, one JSON of COCO or one XML of CVAT, got "
            f"'{path}', in which {text[:200]}"
        ) from error


Result = TypeVar("Result")


def _json(path: Path) -> str:
    """Return the text of a JSON file in UTF-8, -16 or -32, with a byte order mark or without."""
    content = path.read_bytes()
    return content.decode(json.detect_encoding(content))


class _LabelMeShape(BaseModel, strict=True):
    label: str
    points: list[tuple[Coordinate, Coordinate]]
    shape_type: str | None = "polygon"
    mask: str | None = None


class _LabelMe(BaseModel, strict=True):
    shapes: list[_LabelMeShape]
    imagePath: str
    imageHeight: int | None = None
    imageWidth: int | None = None


def _labelme(path: Path, name: str) -> Drawing:
    content = _LabelMe.model_validate_json(_json(path))
    if PureWindowsPath(content.imagePath).stem != path.stem:  # takes / and \ alike
        raise ValueError(f"imagePath should be the picture '{path.stem}', is {content.imagePath!r}")
    size = (content.imageWidth, content.imageHeight)
    shapes = [Shape(shape.label, _labelme_area(shape)) for shape in content.shapes]
    return Drawing(Path(name).as_posix(), (size[0], size[1]) if size[0] and size[1] else None, shapes, path)


def _labelme_area(shape: _LabelMeShape) -> Callable[[int, int], Placed]:
    points, kind = np.array(shape.points), shape.shape_type or "polygon"
    if kind in ("polygon", "oriented_rectangle") and len(points) > 2:
        return partial(polygon, points)
    if kind not in ("rectangle", "circle", "mask") or len(points) != 2:
        raise ValueError(
            f"a shape {shape.label!r} is a {kind} of {len(points)} points, which has no area: draw polygons, rectangles, "
            "circles or masks"
        )
    if kind == "rectangle":
        return partial(polygon, corners(*points[0], *points[1]))
    if kind == "circle":  # a centre, and a point on it
        angles = np.radians(np.arange(360))
        rim = np.stack([np.cos(angles), np.sin(angles)], 1) * np.hypot(*(points[1] - points[0]))
        return partial(polygon, points[0] + rim)
    return partial(_labelme_mask, shape.mask or "", *points.astype(int).ravel().tolist())


def _labelme_mask(code: str, x0: int, y0: int, x1: int, y1: int, height: int, width: int) -> Placed:
    """Return LabelMe's mask: a PNG in base64, from the first to the last pixel of its box, both included."""
    if x0 < 0 or y0 < 0 or x1 >= width or y1 >= height:
        raise ValueError(f"a mask outside of {(height, width)}")
    try:
        content = base64.b64decode(code, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a mask that is not base64 ({error})") from error
    try:
        opened = Image.open(io.BytesIO(content), formats=["PNG"])
    except UnidentifiedImageError:  # its text holds an address in memory
        raise ValueError("a mask that is not a PNG") from None
    with opened as picture:
        if picture.size != (x1 - x0 + 1, y1 - y0 + 1):
            raise ValueError(f"a mask of {picture.size} in a box of {(x1 - x0 + 1, y1 - y0 + 1)}")
        return y0, x0, np.asarray(picture.convert("L")) > 0


class _Rle(BaseModel, strict=True):
    size: tuple[int, int]  # height, width
    counts: str | list[NonNegativeInt]


class _CocoImage(BaseModel, strict=True):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _CocoCategory(BaseModel, strict=True):
    id: int
    name: str


class _CocoAnnotation(BaseModel, strict=True):
    id: int | str | None = None
    image_id: int | str
    category_id: int
    segmentation: list[list[Coordinate]] | _Rle = Field(default_factory=list)


class _Coco(BaseModel, strict=True):
    images: list[_CocoImage]
    categories: list[_CocoCategory]
    annotations: list[_CocoAnnotation]


def _coco(path: Path) -> list[Drawing]:
    content = _Coco.model_validate_json(_json(path))
    for what, ids in (
        ("image", [i.id for i in content.images]),
        ("category", [c.id for c in content.categories]),
    ):
        number, count = Counter(ids).most_common(1)[0] if ids else (0, 0)
        if count > 1:  # as in files that were joined
            raise ValueError(f"the {what} id {number} is there {count} times")
    labels = {category.id: category.name for category in content.categories}
    drawings = {
        image.id: Drawing(
            os.path.splitext(image.file_name.replace("\\", "/"))[0],
            (image.width, image.height) if image.width and image.height else None,
            [],
            path,
        )
        for image in content.images
    }
    for annotation in content.annotations:
        where = f"annotation {annotation.id} of category {annotation.category_id}"
        if annotation.image_id not in drawings or annotation.category_id not in labels:
            raise ValueError(f"{where} belongs to no image or category of the file")
        parts = annotation.segmentation
        areas = [partial(_coco_rle, parts)] if isinstance(parts, _Rle) else [*map(_coco_polygon, parts)]
        if not areas:
            raise ValueError(f"{where} has no segmentation: a box is not a mask")
        drawings[annotation.image_id].shapes.extend(
            Shape(labels[annotation.category_id], area) for area in areas
        )
    return list(drawings.values())


def _coco_polygon(numbers: Sequence[float]) -> Callable[[int, int], Placed]:
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon has {len(numbers)} numbers, not x and y of three points or more")
    return partial(polygon, np.reshape(numbers, (-1, 2)))


def _coco_rle(code: _Rle, height: int, width: int) -> Placed:
    if code.size != (height, width):
        raise ValueError(f"run lengths of {code.size} in a picture of {(height, width)}")
    return 0, 0, decode_rle(code.counts, height, width)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE where it begins: before it can define an entity."""

    def doctype(self, *_: object) -> None:
        raise ValueError("there is a DOCTYPE, which CVAT does not write")


def _cvat(path: Path) -> list[Drawing]:
    root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    if root.tag != "annotations" or root.find("track") is not None:
        raise ValueError("the root is not that of an export as 'CVAT for images 1.1'")
    drawings = []
    for image in root.findall("image"):
        name = _attribute(image, "name")
        elements = [element for element in image if element.tag != "tag"]  # of the image as a whole
        try:
            elements.sort(key=lambda element: int(element.get("z_order", "0")))
            shapes = [Shape(_attribute(e, "label"), _cvat_area(e, name)) for e in elements]
            size = int(_attribute(image, "width")), int(_attribute(image, "height"))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"the image '{name}' cannot be read: {error}") from error
        drawings.append(Drawing(os.path.splitext(name)[0], size, shapes, path))
    return drawings


def _attribute(element: ElementTree.Element, key: str) -> str:
    if key not in element.attrib:
        raise ValueError(f"an element <{element.tag}> has no {key}")
    return element.attrib[key]


def _cvat_area(element: ElementTree.Element, image: str) -> Callable[[int, int], Placed]:
    def number(key: str) -> float:
        return float(_attribute(element, key))

    if element.tag == "mask":
        runs = [int(run) for run in re.split(r"\s*,\s*", _attribute(element, "rle").strip())]
        top, left, height, width = (int(number(key)) for key in ("top", "left", "height", "width"))
        return lambda h, w: _cvat_mask(runs, top, left, height, width, (h, w))
    if element.tag == "box":
        rotation = float(element.get("rotation", "0"))
        points = corners(number("xtl"), number("ytl"), number("xbr"), number("ybr"), rotation)
    elif element.tag == "polygon":
        pairs = [point.split(",") for point in _attribute(element, "points").split(";")]
        points = np.array([[float(x), float(y)] for x, y in pairs])
    else:
        raise ValueError(
            f"<{element.tag}> in '{image}' has no area that is read: draw polygons, boxes or masks"
        )
    if len(points) < 3 or not (np.abs(points) <= 1e6).all():  # which NaN is not either
        raise ValueError(
            f"a <{element.tag}> in '{image}' has {len(points)} points, or one that is far outside"
        )
    return partial(polygon, points)


def _cvat_mask(
    runs: list[int], top: int, left: int, height: int, width: int, size: tuple[int, int]
) -> Placed:
    """Return CVAT's mask: runs along the rows of its box."""
    if height < 1 or width < 1 or height > size[0] or width > size[1]:
        raise ValueError(f"a mask of {(height, width)} in a picture of {size}")
    return top, left, decode_rle(runs, width, height).T

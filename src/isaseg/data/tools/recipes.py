"""The official archives of each data set: what they are called, where their files go, what is made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from isaseg.data.tools.archive import Place
from isaseg.data.tools.convert import convert_coco_10k, convert_context, convert_sbd
from isaseg.data.tools.detail import DETAIL

Convert = Callable[[Path, Mapping[str, Path]], list[Path]]


class Need(NamedTuple):
    """One of these folders must be there in the end; each of these archives alone gives one."""

    folders: tuple[str, ...]
    archives: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How a data set is made; paths are below its folder.

    Attributes:
        facts: Its name in classes/.
        site: Where the archives are published.
        home: Its folder below the root, in the archives.
        inside: Folders below the root where it is looked for, as by its module.
        archives: File name to where its members go; None: it is not unpacked but given to `convert`.
        needs: What must be there; an archive that nothing needs is optional.
        convert: Makes the files that no archive has.
        nested: Zips inside zips that are unpacked.
    """

    facts: str
    site: str
    home: str
    inside: tuple[str, ...]
    archives: Mapping[str, Place | None]
    needs: tuple[Need, ...]
    convert: Convert | None = None
    nested: tuple[str, ...] = field(default=())


def _move(prefix: str, to: str, only: tuple[str, ...], path: str) -> str | None:
    """Put what is below `prefix` below `to`; with `only`, just the paths that begin so."""
    inner = path.removeprefix(prefix)
    if not path.startswith(prefix) or (only and not inner.startswith(only)):
        return None
    return to + inner


def _from(prefix: str = "", to: str = "", only: tuple[str, ...] = ()) -> Place:
    return partial(_move, prefix, to, only)


_LIP = {
    "train_images": "TrainVal_images",
    "val_images": "TrainVal_images",
    "train_segmentations": "TrainVal_parsing_annotations",
    "val_segmentations": "TrainVal_parsing_annotations",
    "testing_images": "Testing_images",
}


def _place_lip(archive: str, path: str) -> str | None:
    """Go by the last folder: copies differ in how often the archives' names lie around it."""
    *folders, name = f"{archive}/{path}".split("/")
    if folders[-1] in _LIP:
        return f"{_LIP[folders[-1]]}/{folders[-1]}/{name}"
    if name == "test_id.txt":
        return f"Testing_images/{name}"
    if name in ("train_id.txt", "val_id.txt"):
        labels = any("parsing_annotations" in folder for folder in folders)
        return f"{'TrainVal_parsing_annotations' if labels else 'TrainVal_images'}/{name}"
    return None


_LIP_ZIPS = ("TrainVal_images.zip", "TrainVal_parsing_annotations.zip", "Testing_images.zip")

_CONTEXT = Recipe(
    facts="pascal_context",
    site="host.robots.ox.ac.uk/pascal/VOC/voc2010, cs.stanford.edu/~roozbeh/pascal-context (trainval.tar.gz), "
    "sites.google.com/view/pasd (trainval_merged.json)",
    home="VOCdevkit/VOC2010",
    inside=("VOCdevkit/VOC2010", "VOC2010"),
    archives={
        "VOCtrainval_03-May-2010.tar": _from("VOCdevkit/VOC2010/"),
        DETAIL: None,
        "trainval.tar.gz": _from(),
    },
    needs=(
        Need(("JPEGImages",), ("VOCtrainval_03-May-2010.tar",)),
        Need(("trainval", "SegmentationClassContext"), (DETAIL, "trainval.tar.gz")),
    ),
    convert=convert_context,
)

# by the names of conf/data
RECIPES: dict[str, Recipe] = {
    "cityscapes": Recipe(
        facts="cityscapes",
        site="cityscapes-dataset.com",
        home="",
        inside=("cityscapes",),
        archives={"leftImg8bit_trainvaltest.zip": _from(), "gtFine_trainvaltest.zip": _from()},
        needs=(
            Need(("leftImg8bit",), ("leftImg8bit_trainvaltest.zip",)),
            Need(("gtFine",), ("gtFine_trainvaltest.zip",)),
        ),
    ),
    "ade20k": Recipe(
        facts="ade20k",
        site="sceneparsing.csail.mit.edu",
        home="ADEChallengeData2016",
        inside=("ADEChallengeData2016",),
        archives={
            "ADEChallengeData2016.zip": _from("ADEChallengeData2016/"),
            "release_test.zip": _from("release_test/", only=("testing/",)),
        },
        needs=(
            Need(("images",), ("ADEChallengeData2016.zip",)),
            Need(("annotations",), ("ADEChallengeData2016.zip",)),
        ),
    ),
    "lip": Recipe(
        facts="lip",
        site="lip.sysuhcp.com",
        home="",
        inside=("LIP",),
        archives={name: partial(_place_lip, name.removesuffix(".zip")) for name in ("LIP.zip", *_LIP_ZIPS)},
        needs=(
            Need(("TrainVal_images", "train_images"), ("LIP.zip", "TrainVal_images.zip")),
            Need(
                ("TrainVal_parsing_annotations", "Trainval_parsing_annotations", "train_segmentations"),
                ("LIP.zip", "TrainVal_parsing_annotations.zip"),
            ),
        ),
        nested=_LIP_ZIPS,
    ),
    "pascal_voc": Recipe(
        facts="pascal_voc",
        site="host.robots.ox.ac.uk/pascal/VOC/voc2012, home.bharathh.info/pubs/codes/SBD (benchmark.tgz)",
        home="VOCdevkit/VOC2012",
        inside=("VOCdevkit/VOC2012", "VOC2012"),
        archives={
            "VOCtrainval_11-May-2012.tar": _from("VOCdevkit/VOC2012/"),
            "VOC2012test.tar": _from("VOCdevkit/VOC2012/"),
            "benchmark.tgz": _from(
                "benchmark_RELEASE/dataset/", "SBD/", ("cls/", "img/", "train.txt", "val.txt")
            ),
        },
        needs=(
            Need(("JPEGImages",), ("VOCtrainval_11-May-2012.tar",)),
            Need(("SegmentationClass",), ("VOCtrainval_11-May-2012.tar",)),
        ),
        convert=convert_sbd,
    ),
    "pascal_context": _CONTEXT,
    "pascal_context_60": _CONTEXT,
    "coco_stuff": Recipe(
        facts="coco_stuff",
        site="github.com/nightrome/cocostuff10k",
        home="",
        inside=("coco_stuff10k", "cocostuff-10k-v1.1"),
        archives={"cocostuff-10k-v1.1.zip": _from()},
        needs=(
            Need(("images",), ("cocostuff-10k-v1.1.zip",)),
            Need(("annotations",), ("cocostuff-10k-v1.1.zip",)),
            Need(("imageLists",), ("cocostuff-10k-v1.1.zip",)),
        ),
        convert=convert_coco_10k,
    ),
    "coco_stuff_164k": Recipe(
        facts="coco_stuff_164k",
        site="cocodataset.org, github.com/nightrome/cocostuff (stuffthingmaps_trainval2017.zip)",
        home="",
        inside=("coco_stuff164k",),
        archives={
            "train2017.zip": _from(to="images/"),
            "val2017.zip": _from(to="images/"),
            "test2017.zip": _from(to="images/"),
            "stuffthingmaps_trainval2017.zip": _from(to="annotations/"),
        },
        needs=(
            Need(("images/train2017",), ("train2017.zip",)),
            Need(("images/val2017",), ("val2017.zip",)),
            Need(("annotations/train2017",), ("stuffthingmaps_trainval2017.zip",)),
            Need(("annotations/val2017",), ("stuffthingmaps_trainval2017.zip",)),
        ),
    ),
}

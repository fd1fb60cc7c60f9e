"""The official archives of each data set: their names, where their files go, and what is made of them.

A data set that is not here is read all the same; it just has no `prepare`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isaseg.data.tools.convert import convert_context, convert_sbd
from isaseg.data.tools.detail import DETAIL
from isaseg.data.tools.unpack import Place

# Of archives as published. Those that are not here have no SHA-256 that is known to be official.
# PASCAL VOC and COCO: TensorFlow Datasets, url_checksums/voc.txt and coco.txt; VOC 2010 and SBD: torchvision's
# prototype datasets.
SHA256 = {
    "VOCtrainval_11-May-2012.tar": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    "VOC2012test.tar": "f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
    "VOCtrainval_03-May-2010.tar": "1af4189cbe44323ab212bff7afbc7d0f55a267cc191eb3aac911037887e5c7d4",
    "benchmark.tgz": "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    "train2017.zip": "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    "val2017.zip": "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    "test2017.zip": "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba",
}


@dataclass(frozen=True)
class OfficialArchives:
    """The archives of a data set.

    Attributes:
        info: Its name in data/classes; two that share their archives share it.
        site: Where the archives are published.
        folders: Where the data set may be below the root, as its module looks for it; the archives put it in the
            first. "" is the root itself.
        archives: File name to where its members go; None: it is not unpacked but an input of `convert`. An archive
            that goes into the folder itself is unpacked in turn.
        needs: The folders of which one must be there in the end, to the archives of which each gives one. An archive
            that is not here is optional.
        convert: Makes the files that no archive has, given the folder of the data set, the folder to write to, which
            has the same layout, and the inputs by name.
    """

    info: str
    site: str
    folders: tuple[str, ...]
    archives: Mapping[str, Place | None]
    needs: Mapping[tuple[str, ...], tuple[str, ...]]
    convert: Callable[[Path, Path, Mapping[str, Path]], None] | None = None

    @property
    def inputs(self) -> set[str]:
        """Names of the archives that are given to `convert`."""
        return {name for name, place in self.archives.items() if place is None}

    def folder_in(self, root: Path) -> Path:
        """Return the data set's folder: where its module finds it, else where the archives put it."""
        known = next((root / sub for sub in self.folders if sub and (root / sub).is_dir()), None)
        unpacked = any((root / sub).is_dir() for folders in self.needs for sub in folders)
        return known or (root if unpacked else root / self.folders[0])


def _from(prefix: str = "", to: str = "", only: tuple[str, ...] = ("",)) -> Place:
    """Return a place that puts what is below `prefix` below `to`, if its path from there begins as one of `only`."""

    def place(path: str) -> str | None:
        inner = path.removeprefix(prefix)
        return to + inner if path.startswith(prefix) and inner.startswith(only) else None

    return place


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
    return name if name in _LIP_ZIPS else None


_LIP_ZIPS = ("TrainVal_images.zip", "TrainVal_parsing_annotations.zip", "Testing_images.zip")

_CONTEXT = OfficialArchives(
    info="pascal_context",
    site="host.robots.ox.ac.uk/pascal/VOC/voc2010, cs.stanford.edu/~roozbeh/pascal-context (trainval.tar.gz), "
    "sites.google.com/view/pasd (trainval_merged.json)",
    folders=("VOCdevkit/VOC2010", "VOC2010"),
    archives={
        "VOCtrainval_03-May-2010.tar": _from("VOCdevkit/VOC2010/"),
        DETAIL: None,
        "trainval.tar.gz": _from(),
    },
    needs={
        ("JPEGImages",): ("VOCtrainval_03-May-2010.tar",),
        ("trainval", "SegmentationClassContext"): (DETAIL, "trainval.tar.gz"),
    },
    convert=convert_context,
)

# by the names of conf/data
OFFICIAL: dict[str, OfficialArchives] = {
    "cityscapes": OfficialArchives(
        info="cityscapes",
        site="cityscapes-dataset.com",
        folders=("", "cityscapes"),
        archives={"leftImg8bit_trainvaltest.zip": _from(), "gtFine_trainvaltest.zip": _from()},
        needs={
            ("leftImg8bit",): ("leftImg8bit_trainvaltest.zip",),
            ("gtFine",): ("gtFine_trainvaltest.zip",),
        },
    ),
    "ade20k": OfficialArchives(
        info="ade20k",
        site="sceneparsing.csail.mit.edu",
        folders=("ADEChallengeData2016",),
        archives={
            "ADEChallengeData2016.zip": _from("ADEChallengeData2016/"),
            "release_test.zip": _from("release_test/", only=("testing/",)),
        },
        needs={
            ("images",): ("ADEChallengeData2016.zip",),
            ("annotations",): ("ADEChallengeData2016.zip",),
        },
    ),
    "lip": OfficialArchives(
        info="lip",
        site="lip.sysuhcp.com",
        folders=("", "LIP"),
        archives={name: partial(_place_lip, name.removesuffix(".zip")) for name in ("LIP.zip", *_LIP_ZIPS)},
        needs={
            ("TrainVal_images", "train_images"): ("LIP.zip", "TrainVal_images.zip"),
            ("TrainVal_parsing_annotations", "Trainval_parsing_annotations", "train_segmentations"): (
                "LIP.zip",
                "TrainVal_parsing_annotations.zip",
            ),
        },
    ),
    "pascal_voc": OfficialArchives(
        info="pascal_voc",
        site="host.robots.ox.ac.uk/pascal/VOC/voc2012, home.bharathh.info/pubs/codes/SBD (benchmark.tgz)",
        folders=("VOCdevkit/VOC2012", "VOC2012"),
        archives={
            "VOCtrainval_11-May-2012.tar": _from("VOCdevkit/VOC2012/"),
            "VOC2012test.tar": _from("VOCdevkit/VOC2012/"),
            "benchmark.tgz": _from(
                "benchmark_RELEASE/dataset/", "SBD/", ("cls/", "img/", "train.txt", "val.txt")
            ),
        },
        needs={
            ("JPEGImages",): ("VOCtrainval_11-May-2012.tar",),
            ("SegmentationClass",): ("VOCtrainval_11-May-2012.tar",),
        },
        convert=convert_sbd,
    ),
    "pascal_context": _CONTEXT,
    "pascal_context_60": _CONTEXT,
    "coco_stuff": OfficialArchives(
        info="coco_stuff",
        site="github.com/nightrome/cocostuff10k",
        folders=("", "coco_stuff10k", "cocostuff-10k-v1.1"),
        archives={"cocostuff-10k-v1.1.zip": _from()},
        needs={
            ("images",): ("cocostuff-10k-v1.1.zip",),
            ("annotations",): ("cocostuff-10k-v1.1.zip",),
            ("imageLists",): ("cocostuff-10k-v1.1.zip",),
        },
    ),
    "coco_stuff_164k": OfficialArchives(
        info="coco_stuff_164k",
        site="cocodataset.org, github.com/nightrome/cocostuff (stuffthingmaps_trainval2017.zip)",
        folders=("", "coco_stuff164k"),
        archives={
            "train2017.zip": _from(to="images/"),
            "val2017.zip": _from(to="images/"),
            "test2017.zip": _from(to="images/"),
            "stuffthingmaps_trainval2017.zip": _from(to="annotations/"),
        },
        needs={
            ("images/train2017",): ("train2017.zip",),
            ("images/val2017",): ("val2017.zip",),
            ("annotations/train2017",): ("stuffthingmaps_trainval2017.zip",),
            ("annotations/val2017",): ("stuffthingmaps_trainval2017.zip",),
        },
    ),
}

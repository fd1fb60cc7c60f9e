"""LIP: the layouts of the archives and of flat copies, lists of ids, left and right."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.lip import INFO, lip
from isaseg.errors import DataError
from tests.fakes import labels_of, make_fake_lip


def test_classes_and_what_a_mirror_swaps(tmp_path: Path) -> None:
    source = lip("train", str(make_fake_lip(tmp_path)))
    assert source is not None
    pairs = [(INFO.classes[a], INFO.classes[b]) for a, b in source.flip_pairs]
    assert pairs == [("Left-arm", "Right-arm"), ("Left-leg", "Right-leg"), ("Left-shoe", "Right-shoe")]
    assert INFO.classes[0] == "Background"


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("inside", ["", "LIP"])
def test_the_labels_of_both_layouts_are_kept(tmp_path: Path, flat: bool, inside: str) -> None:
    root = make_fake_lip(tmp_path, flat=flat)
    for split, names in (("train", ["77 471476", "77_471474"]), ("val", ["36 471476", "36_471474"])):
        source = lip(split, str(root / inside))
        assert source is not None
        assert sorted(source.name(i) for i in range(len(source))) == names
        for i in range(len(source)):
            image, mask = source.load(i).image, labels_of(source, i)
            path = source.pairs[i].mask
            assert path is not None
            assert path.parent.name == f"{split}_segmentations"  # not its mirrored sibling
            assert np.array_equal(mask, np.asarray(Image.open(path)))
            assert set(np.unique(mask)) == set(range(20))
            assert image.shape == (*mask.shape, 3)
        check_files(source)


def test_a_grey_photo_has_three_equal_channels(tmp_path: Path) -> None:
    source = lip("val", str(make_fake_lip(tmp_path)))
    assert source is not None
    index = [p.name for p in source.pairs].index("36 471476")
    with Image.open(source.pairs[index].image) as picture:
        assert picture.mode == "L"
    image = source.load(index).image[:, :]
    assert np.array_equal(image, np.repeat(image[..., :1], 3, axis=2))


def test_palette_labels_are_read_too(tmp_path: Path) -> None:
    source = lip("train", str(make_fake_lip(tmp_path)))
    assert source is not None
    path = source.pairs[0].mask
    assert path is not None
    raw = np.asarray(Image.open(path))
    picture = Image.fromarray(raw)
    picture.putpalette([(97 * c) % 256 for c in range(768)])
    picture.save(path)
    assert np.array_equal(labels_of(source, 0), raw)


def test_the_list_decides_and_keeps_its_order(tmp_path: Path) -> None:
    make_fake_lip(tmp_path, n=3)
    ids = tmp_path / "LIP" / "TrainVal_images" / "val_id.txt"
    ids.write_text("36 471477\r\n36_471474\r\n\r\n")
    source = lip("val", str(tmp_path))
    assert source is not None
    assert [source.name(i) for i in range(len(source))] == ["36 471477", "36_471474"]
    ids.unlink()
    with pytest.raises(DataError, match=r"3 of 4 pairs .*mask of '.*not in the list\.jpg'"):
        lip("val", str(tmp_path))


def test_the_other_spelling_of_the_labels_folder(tmp_path: Path) -> None:
    make_fake_lip(tmp_path)
    folder = tmp_path / "LIP" / "TrainVal_parsing_annotations"
    folder.rename(folder.with_name("Trainval_parsing_annotations"))
    source = lip("train", str(tmp_path))
    assert source is not None
    assert len(source) == 2


def test_test_images_have_no_labels(tmp_path: Path) -> None:
    assert lip("test", str(make_fake_lip(tmp_path / "none"))) is None
    nested = make_fake_lip(tmp_path / "nested", test=True)
    direct = make_fake_lip(tmp_path / "direct", test=True)
    for path in (direct / "LIP/Testing_images/testing_images").iterdir():
        path.rename(path.parents[1] / path.name)
    (direct / "LIP/Testing_images/testing_images").rmdir()
    for root in (nested, direct, make_fake_lip(tmp_path / "flat", flat=True, test=True)):
        source = lip("test", str(root))
        assert source is not None
        assert [source.name(i) for i in range(len(source))] == ["315_0", "315_1"]
        assert source.load(1).mask is None
        check_files(source)

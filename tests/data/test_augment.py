"""Transforms in `data.transform.augment`: pure functions of the key, and refused where they would spoil samples."""

import pickle
import random
from pathlib import Path
from typing import Any

import albumentations as A
import albumentations.pytorch
import numpy as np
import pytest
from omegaconf import OmegaConf

from isaseg import config
from isaseg.data.augment import Draws, check_augment, check_mirrors
from isaseg.data.info import dataset_info
from isaseg.data.transforms import (
    HorizontalFlip,
    PaddleDistortion,
    PhotometricDistortion,
    RandomRotate90,
    TrainTransform,
)
from isaseg.errors import ConfigError
from tests import forked
from tests.conftest import compose_overrides
from tests.data.test_transforms import sample
from tests.reliability.small import SMALL

# in the middle of the list: of pixels, of geometry, of both, and one of several
MIDDLE = [
    A.GaussianBlur(blur_limit=(5, 5), p=0.5),
    A.ElasticTransform(alpha=40, sigma=4, fill_mask=255, p=0.7),
    A.CoarseDropout(fill_mask=255, p=0.5),
    A.OneOf(
        [A.GridDistortion(fill_mask=255), A.GaussNoise(), A.Affine(rotate=(-30, 30), fill_mask=255)], p=0.8
    ),
]


def between(transform: Any) -> TrainTransform:
    return TrainTransform(
        (24, 24), augment=[PhotometricDistortion(), transform, HorizontalFlip(p=0.5), RandomRotate90()]
    )


@pytest.mark.parametrize("transform", MIDDLE, ids=lambda t: type(t).__name__)
def test_a_sample_depends_on_its_key_alone_whatever_came_before(transform: Any) -> None:
    ours, other = between(transform), pickle.loads(pickle.dumps(between(transform)))
    images, keys = set(), [(0, k, 0) for k in range(30)]
    forwards = [ours(*sample(), key) for key in keys]
    backwards = [other(*sample(), key) for key in reversed(keys)][::-1]
    for first, again in zip(forwards, backwards, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        images.add(first[0].tobytes())
    assert len(images) == 30


@pytest.mark.parametrize("transform", MIDDLE, ids=lambda t: type(t).__name__)
def test_labels_and_region_follow_the_image_and_no_label_is_invented(transform: Any) -> None:
    augment = [transform, HorizontalFlip(p=0.5), RandomRotate90()]
    lost = 0
    for k in range(30):
        _, mask, far = TrainTransform((24, 24), None, augment=augment)(*sample(), (0, k, 0))
        assert far is not None and far.dtype == bool
        assert np.array_equal(far, mask == 3)
        assert set(np.unique(mask)) <= {*range(5), 255}
        lost += np.count_nonzero(mask == 255)
    assert bool(lost) != isinstance(transform, A.GaussianBlur)


def test_transforms_are_applied_in_the_order_written() -> None:
    """A shift to the right, before or after the mirror."""
    shift, flip = A.Affine(translate_px={"x": (9, 9)}, fill_mask=255, p=1), HorizontalFlip(p=1)
    results = [
        TrainTransform((24, 24), None, augment=augment)(*sample(), (0, 0, 0))[1] == 255
        for augment in ([shift, flip], [flip, shift])
    ]
    assert results[0].any()
    assert np.array_equal(results[0], results[1][:, ::-1])
    assert not np.array_equal(*results)


def test_colours_that_do_not_lead_the_list_change_padding_too() -> None:
    for augment, is_grey in (
        ([PhotometricDistortion(), HorizontalFlip()], True),
        ([HorizontalFlip(), PhotometricDistortion()], False),
    ):
        transform = TrainTransform((96, 96), None, augment=augment)
        results = [transform(*sample(), (0, k, 0)) for k in range(10)]
        assert all((image[mask == 255] == (124, 116, 104)).all() for image, mask, _ in results) == is_grey


def test_a_mirror_that_leads_but_for_colours_leaves_padding_where_it_is() -> None:
    """As in mmsegmentation and openseg, which mirror before they pad; PaddleSeg pads first."""
    right = np.arange(96) >= 56
    for leading, sides in (
        ([PhotometricDistortion()], {right.tobytes()}),
        ([], {right.tobytes()}),
        ([PaddleDistortion()], {right.tobytes(), right[::-1].tobytes()}),
    ):
        transform = TrainTransform((96, 96), None, pad="corner", augment=[*leading, HorizontalFlip(p=0.5)])
        found, mirrored = set(), set()
        for k in range(20):
            _, mask, far = transform(*sample(), (0, k, 0))
            assert far is not None and np.array_equal(far, mask == 3)
            found.add((mask[0] == 255).tobytes())
            mirrored.add(mask[0, mask[0] != 255].tobytes())
        assert found == sides
        assert mirrored == {line.tobytes() for line in (sample()[1][0], sample()[1][0, ::-1])}


def test_left_and_right_change_places_in_a_mirror_and_nowhere_else() -> None:
    pairs = dataset_info("lip").flip_pairs
    mask = np.arange(20, dtype=np.uint8).repeat(20).reshape(20, 20).T.copy()
    image = np.repeat(mask[..., None] * 12, 3, axis=2)
    mirrored = np.array([*range(14), 15, 14, 17, 16, 19, 18], np.uint8)[mask]
    far = mask == 14
    for flip, expected in ((1.0, mirrored[:, ::-1]), (0.0, mask)):
        augment = [A.OneOf([HorizontalFlip(p=1)], p=flip), A.GaussianBlur()]
        transform = TrainTransform((20, 20), None, augment=augment)
        _, labels, region = transform(image, mask, far, (0, 1, 0), flip_pairs=pairs)
        assert np.array_equal(labels, expected)
        assert region is not None and np.array_equal(region, labels == (15 if flip else 14))
    for mirror in (A.HorizontalFlip(), A.VerticalFlip(), A.D4(), A.OneOf([A.Blur(), A.Transpose()])):
        with pytest.raises(ConfigError, match=r"augment\[1\] to swap the paired classes \[\[14, 15\]"):
            check_mirrors([HorizontalFlip(), mirror], pairs)
        check_mirrors([mirror], ())


@pytest.mark.parametrize("data", ["lip", "ade20k"])
def test_a_mirror_that_does_not_swap_is_refused_for_paired_classes_alone(data: str, tmp_path: Path) -> None:
    from tests.fakes import make_fake_ade20k, make_fake_lip

    root = {"lip": make_fake_lip, "ade20k": make_fake_ade20k}[data](tmp_path)
    words = [f"data={data}", f"data.root={root}", "data.num_workers=0"]
    built = config.build(
        compose_overrides(*words, "data.transform.augment=[{_target_: albumentations.HorizontalFlip}]").data,
        "data",
    )
    if data == "ade20k":
        built.check()
        return
    with pytest.raises(ConfigError, match="mirror by isaseg.data.transforms.HorizontalFlip"):
        built.check()


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ("blur", "to be an albumentations transform, got 'blur'"),
        (A.BboxParams("coco"), "to be an albumentations transform"),
        (
            A.Resize(20, 20),
            r"to keep size and type, .* got Resize, which makes the image uint8 \(20, 20, 3\)",
        ),
        (RandomRotate90(), r"data.crop_size=\[40, 60\], got RandomRotate90, .* uint8 \(60, 40, 3\)"),
        (A.OneOf([A.Blur(), A.D4()], p=0.1), "to keep size and type, .* got OneOf"),
        (A.Normalize(), "to keep size and type, .* got Normalize, which makes the image float32"),
        (albumentations.pytorch.ToTensorV2(), "got ToTensorV2, which makes the image Tensor"),
        (
            A.ElasticTransform(alpha=40, mask_interpolation=1, fill_mask=255),
            "to add no label .* got ElasticTransform",
        ),
        (
            A.Affine(rotate=(20, 30)),
            r"ignore_index=255, got Affine, which adds \[0\]; give it fill_mask: 255",
        ),
        (A.RandomCrop(90, 90), "got RandomCrop, which fails: Crop size"),
        (A.BBoxSafeRandomCrop(), "got BBoxSafeRandomCrop, which fails: .*bboxes"),
        (A.RandomCropNearBBox(), "got RandomCropNearBBox, which fails: .*cropping_bbox"),
        (A.Mosaic(), "got Mosaic, which fails: .*mosaic_metadata"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_would_spoil_samples_is_refused_by_its_place(transform: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected data\.transform\.augment\[1\] .*{said}") as caught:
        TrainTransform((40, 60), augment=[HorizontalFlip(), transform])
    assert "\n" not in str(caught.value)
    good = A.Sequential([A.RandomScale(), A.PadIfNeeded(40, 60, fill_mask=255), A.RandomCrop(40, 60)])
    check_augment([good, *MIDDLE, A.ToGray(), A.CLAHE()], (40, 60), 255)


class Moody(A.DualTransform):
    """A transform of the user's own that behaves while it is tried, when all pixels are noise."""

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        return img if len(np.unique(img)) > 50 or img.ndim == 2 else img[1:]


def test_a_size_that_changes_later_is_reported_too() -> None:
    transform = TrainTransform((40, 40), None, augment=[Moody(p=1)])
    with pytest.raises(
        ConfigError, match=r"augment to keep data.crop_size=\[40, 40\], got .*\(39, 40\), labels"
    ):
        transform(*sample()[:2], None, (0, 0, 0))


def test_all_that_random_offers_comes_from_the_generator() -> None:
    """And nothing is kept, as the second number of gauss is by Python."""

    def drawn(seed: int) -> list[Any]:
        draws = Draws(np.random.default_rng(seed))
        some: list[Any] = [draws.random(), draws.randint(3, 9), draws.gauss(1, 2), draws.choice("abcdef")]
        some += [
            draws.uniform(2, 3),
            draws.sample(range(99), 3),
            draws.betavariate(2, 3),
            draws.getrandbits(70),
        ]
        return some

    state = random.getstate()
    assert drawn(1) == drawn(1) != drawn(2)
    assert random.getstate() == state
    draws = Draws(np.random.default_rng(0))
    assert {draws.randint(0, 3) for _ in range(99)} == {0, 1, 2, 3}
    assert {draws.getrandbits(2) for _ in range(99)} == {0, 1, 2, 3}


def test_a_fault_of_several_values_together_is_one_sentence() -> None:
    crop = OmegaConf.create({"_target_": "albumentations.Crop", "x_min": 10, "x_max": 5})
    with pytest.raises(ConfigError, match="^crop cannot be built: .*x_max"):
        config.build(crop, "crop")


def test_a_transform_in_the_middle_of_the_list_through_the_command_line(tmp_path: Path) -> None:
    """As docs/data-sets.md says; the run states its list, and a label that would be invented is refused before it."""
    ours = "isaseg.data.transforms"
    blur, elastic = (
        "{_target_: albumentations.GaussianBlur, p: 0.2}",
        "{_target_: albumentations.Affine, rotate: 9",
    )
    for fill, code in (("}", 2), (", fill_mask: 255}", 0)):
        middle = f"{{_target_: {ours}.PhotometricDistortion}}, {blur}, {elastic}{fill}"
        words = [f"data.transform.augment=[{middle}, {{_target_: {ours}.HorizontalFlip, p: 0.5}}]"]
        done = forked.run("train.py", *SMALL, "trainer.max_steps=2", *words, "run_dir=run", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        if code:
            assert "error: expected data.transform.augment[2] to add no label" in done.stderr
            assert done.stderr.count("\n") == 1
            assert not (tmp_path / "run").exists()
    assert "albumentations.Affine" in (tmp_path / "run" / "config.yaml").read_text()

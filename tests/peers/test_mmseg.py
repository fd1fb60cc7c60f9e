"""The same as mmsegmentation, where it is installed (`make peers`): logits, labels, protocols and scores.

Its weights are in our network, which is applied as the composed configuration says, so that both are tested:
`isaseg.inference.apply` and the node `test`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from isaseg.checkpoints.loading import load_model
from isaseg.config import compose_from
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.metrics import count_each, known, scores
from isaseg.inference.protocol import inference_of
from isaseg.models.segmenter import Segmenter
from tests.inference.tiny import predict_logits
from tests.peers.peer import PEER, run_peer
from tests.training.test_initial import check_begins
from tests.training.test_initial import photos as photos

needed = pytest.mark.skipif(not PEER.exists(), reason="mmsegmentation is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]

SIZE = (110, 157)
CLASSES = [19, 150]  # of label maps
MODELS = {
    "edges": "isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "aligned": "isanet/isanet_r50-d8_4xb2-40k_cityscapes-769x769.py",
    "edges_r101": "isanet/isanet_r101-d8_4xb2-80k_cityscapes-512x1024.py",
    "aligned_r101": "isanet/isanet_r101-d8_4xb2-80k_cityscapes-769x769.py",
}


class Case(NamedTuple):
    """One way of testing: the model, and what replaces values of mmseg's configuration; whole without `crop`."""

    model: str
    crop: tuple[int, int] | None = None  # of windows
    stride: tuple[int, int] | None = None
    scale: tuple[int, int] | None = None  # width and height to fit in
    ratios: Sequence[float] | None = None
    size: tuple[int, int] = SIZE  # of the picture
    tolerance: float = 1e-4  # of the largest value


CASES = {
    f"{model}_{size[0]}x{size[1]}": Case(model, size=size, tolerance=1e-5)
    for model in MODELS
    for size in ([(512, 1024), (512, 683), (97, 131)] if "edges" in model else [(769, 769), (97, 131)])
}
CASES |= {
    "whole": Case("edges"),
    "whole_smaller": Case("edges", scale=(200, 90)),
    "whole_larger_aligned": Case("aligned", scale=(230, 140)),
    "windows": Case("edges", crop=(81, 97), stride=(54, 64), scale=(220, 130)),
    "windows_aligned": Case("aligned", crop=(97, 97), stride=(64, 64), scale=(220, 130)),
    "windows_higher_than_the_picture": Case("edges", crop=(121, 81), stride=(80, 54)),
    "windows_larger_than_the_picture": Case("aligned", crop=(400, 400), stride=(300, 300)),
    "scales": Case("edges", ratios=(0.5, 0.75, 1.25)),
    "scales_windows_aligned": Case("aligned", crop=(97, 97), stride=(64, 64), ratios=(0.75, 1.25)),
}


def blobs(size: tuple[int, int]) -> np.ndarray:
    """Return a picture of soft colours with some noise, uint8 (H, W, 3)."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 5, 6, generator=random)
    noise = torch.randn(1, 3, *size, generator=random)
    picture = 120 + 70 * F.interpolate(coarse, size=size, mode="bilinear") + 20 * noise
    return picture.clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


def label_maps(classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return predictions and targets: noise, then areas with wrong borders; some classes absent, some only predicted."""
    rng = np.random.default_rng(classes)
    maps = []
    for size in ((31, 47), (64, 64), (50, 90), (128, 200)):
        target = rng.integers(0, classes, size)
        prediction = rng.integers(0, classes, size)
        if len(maps) > 1:  # areas, and a prediction that is shifted by some pixels
            target = np.kron(
                rng.integers(0, classes - 3, (-(-size[0] // 10), -(-size[1] // 10))), np.ones((10, 10), int)
            )
            prediction = np.roll(target, (2, -1), (0, 1))[: size[0], : size[1]]
            target = target[: size[0], : size[1]]
        target[target == classes // 2] = 255  # so that a class is nowhere or is only predicted
        target[rng.random(size) < 0.1] = 255
        prediction[prediction == classes - 1] = 0
        target[target == classes - 1] = 0
        maps.append((prediction.astype(np.uint8), target.astype(np.uint8)))
    return maps


def how_of(*overrides: str) -> Inference:
    GlobalHydra.instance().clear()
    return inference_of(compose_from("evaluate", ["checkpoint=none", *overrides]), ())


def ours(case: Case) -> Inference:
    """Return our way of testing."""
    words = ["data=cityscapes", f"protocol={'mmseg' if 'edges' in case.model else 'mmseg_769'}"]
    if case.crop is None or case.stride is None:
        words += ["test.mode=whole"]
    else:
        words += [f"test.crop_size=[{case.crop[0]},{case.crop[1]}]", "test.mode=slide"]
        words += [f"test.stride=[{case.stride[0]},{case.stride[1]}]"]
    if case.ratios is not None:
        return how_of(*words, "test.tta=true", f"test.scales={list(case.ratios)}")
    if case.scale is None:
        return how_of(*words, "data.val_resize=null")
    long_side, short_side = case.scale
    return how_of(*words, f"data.val_resize={{short_side:{short_side},long_side:{long_side}}}")


def theirs(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """Return the task of the peer."""
    picture = folder / "{}x{}.png".format(*case.size)
    Image.fromarray(blobs(case.size)).save(picture)
    test_cfg: dict[str, Any] = {"mode": "whole"}
    if case.crop is not None:
        test_cfg = {"mode": "slide", "crop_size": case.crop, "stride": case.stride}
    how = {"test_cfg": test_cfg, "scale": case.scale, "ratios": case.ratios}
    return {"name": name, "picture": str(picture), **how}


# Our protocol and data set, and mmseg's configuration of it: ISANet's, or the one whose values conf/recipe says it has.
PUBLISHED = {
    ("cityscapes", "mmseg"): "isanet/isanet_r101-d8_4xb2-80k_cityscapes-512x1024.py",
    ("cityscapes", "mmseg_769"): "isanet/isanet_r101-d8_4xb2-80k_cityscapes-769x769.py",
    ("ade20k", "mmseg"): "isanet/isanet_r101-d8_4xb4-160k_ade20k-512x512.py",
    ("pascal_voc", "mmseg"): "isanet/isanet_r101-d8_4xb4-40k_voc12aug-512x512.py",
    ("pascal_context", "mmseg"): "deeplabv3/deeplabv3_r101-d8_4xb4-40k_pascal-context-59-480x480.py",
    ("pascal_context_60", "mmseg"): "deeplabv3/deeplabv3_r101-d8_4xb4-40k_pascal-context-480x480.py",
    ("coco_stuff", "mmseg"): "deeplabv3/deeplabv3_r101-d8_4xb4-40k_coco-stuff10k-512x512.py",
    ("coco_stuff_164k", "mmseg"): "deeplabv3/deeplabv3_r101-d8_4xb4-80k_coco-stuff164k-512x512.py",
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all that mmseg found."""
    folder = tmp_path_factory.mktemp("peer")
    models, maps = [], []
    for model, file in MODELS.items():
        cases = [theirs(name, case, folder) for name, case in CASES.items() if case.model == model]
        models.append({"name": model, "config": file, "seed": 5, "cases": cases})
    for classes in CLASSES:
        pairs = enumerate(label_maps(classes))
        named = {f"{key}{i}": x for i, pair in pairs for key, x in zip(("prediction", "target"), pair)}
        np.savez(folder / f"{classes}.npz", **named)
        maps.append({"pairs": str(folder / f"{classes}.npz"), "num_classes": classes})
    task = {"models": models, "settings": list(PUBLISHED.values()), "maps": maps, "output": str(folder)}
    run_peer("mmseg_side.py", task, folder)
    return folder


@pytest.fixture(scope="module")
def segmenters(peer: Path) -> dict[str, Segmenter]:
    found = {name: load_model(peer / f"{name}.pth") for name in MODELS}
    for name, model in found.items():
        assert (model.kind, model.description["data"]) == ("mmseg", "cityscapes")
        assert model.description["classes"][0] == "road"
        assert model.segmenter.align_corners is ("aligned" in name)
    return {name: model.segmenter for name, model in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_result_is_that_of_mmsegs_predict(name: str, peer: Path, segmenters: dict[str, Segmenter]) -> None:
    case = CASES[name]
    segmenter, how = segmenters[case.model], ours(case)
    image = torch.from_numpy(blobs(case.size)).permute(2, 0, 1)[None]
    result, labels = predict_logits(segmenter, image, how)[0], predict_labels(segmenter, image, how)[0]
    expected = torch.from_numpy(np.load(peer / f"{case.model}_{name}.npy"))
    their_labels = torch.from_numpy(np.load(peer / f"{case.model}_{name}_labels.npy"))
    assert result.shape == expected.shape == (19, *case.size)
    error = (result - expected).abs().max()
    differ = labels != their_labels
    classes = labels.unique().numel()
    print(f"{name}: error {error / expected.abs().max():.1e}, {differ.sum()} ties, {classes} classes")
    assert error <= case.tolerance * expected.abs().max()
    best = expected.topk(2, dim=0).values
    assert (best[0] - best[1])[differ].le(2 * error).all(), "other labels where it is no tie"
    assert classes > 1 or case.size != SIZE


def test_a_training_begins_with_its_weights(peer: Path, photos: Path) -> None:
    check_begins(photos, peer / "edges.pth", peer / "edges.pth", 19, "resnet50c")


@pytest.mark.parametrize(("data", "protocol"), PUBLISHED)
def test_the_configuration_says_what_mmsegs_says(data: str, protocol: str, peer: Path) -> None:
    said = json.loads((peer / "settings.json").read_text())[PUBLISHED[data, protocol]]
    needed = [f"data={data}", f"protocol={protocol}"]
    how, tta = how_of(*needed), how_of(*needed, "test.tta=true")
    long_side, short_side = max(said["scale"]), min(said["scale"])
    assert how.resize == {"short_side": short_side, "long_side": long_side} and said["keep_ratio"]
    slides = said["test_cfg"]["mode"] == "slide"
    assert how.crop_size == (tuple(said["test_cfg"]["crop_size"]) if slides else None)
    assert how.stride == (tuple(said["test_cfg"]["stride"]) if slides else None)
    assert (how.scales, how.flip, how.average, how.scaling) == ((1.0,), False, "probabilities", "file")
    assert (tta.resize, tta.flip) == (None, True)
    if said["ratios"]:  # some of its configurations have no tta_pipeline
        assert tta.scales == tuple(said["ratios"]) and said["tta_keep_ratio"]
        assert said["flips"] == [0.0, 1.0]
    assert (tta.crop_size, tta.stride) == (how.crop_size, how.stride)


@pytest.mark.parametrize("classes", CLASSES)
def test_scores_are_those_of_mmsegs_metric(classes: int, peer: Path) -> None:
    """It divides in float32: its areas must be ours exactly, its formulas in float64 to 1e-9, its own scores to 1e-6."""
    found = json.loads((peer / "scores.json").read_text())[CLASSES.index(classes)]
    pairs = label_maps(classes)
    tensors = [(torch.from_numpy(p)[None], torch.from_numpy(t)[None]) for p, t in pairs]
    matrix = sum(known(count_each(p, t, classes, 255), 255, t)[0] for p, t in tensors)
    assert isinstance(matrix, torch.Tensor)
    both = matrix.diag()
    areas = [both, matrix.sum(0) + matrix.sum(1) - both, matrix.sum(0), matrix.sum(1)]
    assert [area.tolist() for area in areas] == found["areas"]
    ours = scores(matrix)
    assert ours["iou"].isnan().any() and (ours["iou"] == 0).any(), (
        "a class that is absent, one that is only predicted"
    )
    for theirs, tolerance in ((found["float64"], 1e-9), (found["float32"], 1e-6)):
        for key in ("mIoU", "mAcc", "aAcc", "iou", "acc"):
            name = {"iou": "IoU", "acc": "Acc"}.get(key, key)
            error = np.nanmax(np.abs(ours[key].numpy() - np.array(theirs[name])))
            assert np.array_equal(np.isnan(ours[key].numpy()), np.isnan(theirs[name]))
            assert error <= tolerance
            print(f"{classes} classes, {name}: {error:.1e} of {tolerance:.0e}")

"""Whole, in windows, at several scales and mirrored: as mmsegmentation does it, where it is installed (`make peers`).

The network is applied as the composed configuration says, so that both are tested, `isaseg.inference.apply` and the node
`test`.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from isaseg.checkpoints.loading import load_model
from isaseg.config import compose_from
from isaseg.data.info import dataset_info
from isaseg.inference.apply import Inference, predict_labels, predict_logits
from isaseg.inference.evaluate import evaluate_model
from isaseg.inference.label_files import known_format, write_label_file
from isaseg.inference.metrics import count, scores
from isaseg.inference.protocol import inference_of
from isaseg.models.segmenter import Segmenter
from tests.fakes import make_fake_cityscapes
from tests.inference.tiny import make_checkpoint
from tests.peers import test_peers_cityscapes as cityscapes
from tests.peers.test_peers import PEER, blobs, run_peer

needed = pytest.mark.skipif(not PEER.exists(), reason="mmsegmentation is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]

SIZE = (110, 157)
MODELS = {
    "edges": "isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "aligned": "isanet/isanet_r50-d8_4xb2-40k_cityscapes-769x769.py",
}
PROTOCOLS = {"edges": "mmseg", "aligned": "mmseg_769"}


class Case(NamedTuple):
    """One way of testing: the model, our overrides, and what replaces values of mmseg's configuration."""

    model: str
    overrides: Sequence[str] = ()
    crop: tuple[int, int] | None = None  # of windows
    stride: tuple[int, int] | None = None
    scale: tuple[int, int] | None = None  # width and height to fit in
    ratios: Sequence[float] | None = None


CASES = {
    "whole": Case("edges"),
    "whole_smaller": Case("edges", scale=(200, 90)),
    "whole_larger_aligned": Case("aligned", ["test.mode=whole"], scale=(230, 140)),
    "windows": Case("edges", crop=(81, 97), stride=(54, 64), scale=(220, 130)),
    "windows_aligned": Case("aligned", crop=(97, 97), stride=(64, 64), scale=(220, 130)),
    "windows_higher_than_the_picture": Case("edges", crop=(121, 81), stride=(80, 54)),
    "windows_larger_than_the_picture": Case("aligned", crop=(400, 400), stride=(300, 300)),
    "scales": Case("edges", ratios=(0.5, 0.75, 1.25)),
    "scales_windows_aligned": Case("aligned", crop=(97, 97), stride=(64, 64), ratios=(0.75, 1.25)),
}


def how_of(*overrides: str) -> Inference:
    GlobalHydra.instance().clear()
    return inference_of(compose_from("evaluate", ["checkpoint=none", *overrides]), ())


def ours(case: Case) -> Inference:
    """Return our way of testing."""
    words = ["data=cityscapes", f"protocol={PROTOCOLS[case.model]}", *case.overrides]
    if case.crop is not None and case.stride is not None:
        words += [f"test.crop_size=[{case.crop[0]},{case.crop[1]}]", "test.mode=slide"]
        words += [f"test.stride=[{case.stride[0]},{case.stride[1]}]"]
    if case.ratios is not None:
        return how_of(*words, "test.tta=true", f"test.scales={list(case.ratios)}")
    if case.scale is None:
        return how_of(*words, "data.val_resize=null")
    long_side, short_side = case.scale
    return how_of(*words, f"data.val_resize={{short_side:{short_side},long_side:{long_side}}}")


def theirs(name: str, case: Case) -> dict[str, Any]:
    """Return the task of the peer."""
    test_cfg: dict[str, Any] = {"mode": "whole"}
    if case.crop is not None:
        test_cfg = {"mode": "slide", "crop_size": case.crop, "stride": case.stride}
    return {"name": name, "test_cfg": test_cfg, "scale": case.scale, "ratios": case.ratios}


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
    Image.fromarray(blobs(SIZE)).save(folder / "picture.png")
    models = []
    for model, file in MODELS.items():
        cases = [theirs(name, case) for name, case in CASES.items() if case.model == model]
        models.append({"name": model, "config": file, "seed": 5, "cases": cases})
    task = {"picture": str(folder / "picture.png"), "models": models, "settings": list(PUBLISHED.values())}
    run_peer("protocols.py", {**task, "output": str(folder)}, folder)
    return folder


@pytest.fixture(scope="module")
def segmenters(peer: Path) -> dict[str, Segmenter]:
    return {model: load_model(peer / f"{model}.pth").segmenter for model in MODELS}


@pytest.mark.parametrize("name", CASES)
def test_result_is_that_of_mmsegs_predict(name: str, peer: Path, segmenters: dict[str, Segmenter]) -> None:
    case = CASES[name]
    segmenter = segmenters[case.model]
    assert segmenter.align_corners is (case.model == "aligned")
    image = torch.from_numpy(blobs(SIZE)).permute(2, 0, 1)[None]
    how = ours(case)
    result, labels = predict_logits(segmenter, image, how)[0], predict_labels(segmenter, image, how)[0]
    expected = torch.from_numpy(np.load(peer / f"{case.model}_{name}.npy"))
    their_labels = torch.from_numpy(np.load(peer / f"{case.model}_{name}_labels.npy"))
    assert result.shape == expected.shape == (19, *SIZE)
    error = (result - expected).abs().max()
    differ = labels != their_labels
    classes = labels.unique().numel()
    print(f"{name}: error {error / expected.abs().max():.1e}, {differ.sum()} ties, {classes} classes")
    assert error <= 1e-4 * expected.abs().max()
    best = expected.topk(2, dim=0).values
    assert (best[0] - best[1])[differ].le(2 * error).all(), "other labels where it is no tie"
    assert classes > 1


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


# ---------------------------------------------------------------- scores


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


@pytest.mark.parametrize("classes", [19, 150])
def test_scores_are_those_of_mmsegs_metric(classes: int, tmp_path: Path) -> None:
    """It divides in float32: its areas must be ours exactly, its formulas in float64 to 1e-9, its own scores to 1e-6."""
    maps = label_maps(classes)
    named = {f"{key}{i}": x for i, pair in enumerate(maps) for key, x in zip(("prediction", "target"), pair)}
    np.savez(tmp_path / "pairs.npz", **named)
    task = {"pairs": str(tmp_path / "pairs.npz"), "num_classes": classes, "output": str(tmp_path)}
    run_peer("metrics.py", task, tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    matrix = sum(count(torch.from_numpy(p), torch.from_numpy(t), classes, 255) for p, t in maps)
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


@cityscapes.needed
def test_evaluation_gives_the_official_score_of_cityscapes(tmp_path: Path) -> None:
    """From files in the official layout, some classes in none of them, to metrics.json: as its own scripts score them."""
    data = make_fake_cityscapes(tmp_path / "data", 3)
    truth = sorted(data.glob("gtFine/val/*/*_labelIds.png"))
    known, form = dataset_info("cityscapes"), known_format("cityscapes")
    for path in truth:
        raw = np.array(Image.open(path))
        raw[np.isin(raw, (27, 28, 31))] = 0  # truck, bus, train; 0 is ignored
        Image.fromarray(raw).save(path)
    model = load_model(make_checkpoint(tmp_path / "model.safetensors", 19))
    model.segmenter.head.classifier.bias.data[[14, 16]] = -1000.0  # truck and train are not predicted either
    GlobalHydra.instance().clear()
    words = ["checkpoint=none", "data=cityscapes", f"data.root={data}", "data.num_workers=0", "worst=0"]
    metrics = evaluate_model(compose_from("evaluate", [*words, f"output={tmp_path}/out"]), model)
    for path in truth:
        stem = path.name.removesuffix("_gtFine_labelIds.png")
        (picture,) = data.glob(f"leftImg8bit/val/*/{stem}_*.png")
        image = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None]
        labels = predict_labels(model.segmenter, image, Inference())[0].numpy()
        write_label_file(tmp_path / "labels" / f"{stem}.png", labels, form)
    shutil.make_archive(str(tmp_path / "submission"), "zip", tmp_path / "labels")
    official = cityscapes.official(tmp_path / "submission.zip", truth, tmp_path / "read")["scores"]
    assert [name for name in known.classes if metrics["IoU"][name] is None] == ["truck", "train"]
    for name, iou in metrics["IoU"].items():
        theirs = official["classScores"][name]
        assert math.isnan(theirs) if iou is None else iou == pytest.approx(theirs, abs=1e-9)
    assert metrics["mIoU"] == pytest.approx(official["averageScoreClasses"], abs=1e-9)
    assert metrics["IoU"]["bus"] == 0

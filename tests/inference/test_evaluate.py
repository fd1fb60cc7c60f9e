"""The scores of `evaluate` against plain full-size ones, and what it leaves on disk."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isaseg.checkpoints.loading import Model, load_model
from isaseg.cli.evaluate import main
from isaseg.data.adopted import LabelInfo
from isaseg.data.info import default_palette
from isaseg.data.resize import fit
from isaseg.data.sets.lip import INFO as LIP
from isaseg.inference import apply
from isaseg.inference import evaluate as evaluation
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.evaluate import evaluate_model
from isaseg.inference.protocol import inference_of
from tests import fakes, forked
from tests.inference.test_split_scores import boundary_ious
from tests.inference.tiny import compose_from, files, make_checkpoint, read

COMMAND = main
NAMES = ["sky", "ground", "sea"]


def parsed(path: Path) -> dict[str, Any]:
    """Return parsed JSON; fail on NaN, which JSON does not have."""
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    return found


def scored(model: Model, pairs: list[tuple[Path, np.ndarray]], classes: int) -> list[np.ndarray]:
    """Return the confusion matrix of every picture from full-size logits; rows are targets."""
    matrices = []
    for path, target in pairs:
        image = torch.from_numpy(read(path)).permute(2, 0, 1)[None]
        with torch.no_grad():
            labels = model.segmenter(image).argmax(1)[0].numpy()
        matrix = np.zeros((classes, classes), np.int64)
        np.add.at(matrix, (target[target != 255], labels[target != 255]), 1)
        matrices.append(matrix)
    return matrices


def iou_of(matrix: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))


# ---------------------------------------------------------------- figures


def test_figures_are_those_of_full_size_logits(
    network: Path, own: list[str], photos: Path, tmp_path: Path
) -> None:
    """Pictures of different sizes; a class that occurs nowhere; the worst pictures are the worst."""
    paths = sorted((photos / "images" / "val").iterdir())
    pairs = [(p, read(photos / "masks" / "val" / f"{p.stem}.png").astype(int)) for p in paths]
    model = load_model(network)
    matrices = scored(model, pairs, 3)
    metrics = evaluate_model(compose_from(*own, "protocol=none", f"output={tmp_path}/out", "worst=2"), model)
    assert metrics == parsed(tmp_path / "out" / "metrics.json")
    total = sum(matrices)
    assert metrics["confusion"] == total.tolist()
    iou, acc = iou_of(total), np.diag(total) / total.sum(1)
    assert (total.sum(0) > 0).all(), "all classes are predicted"
    assert metrics["IoU"] == pytest.approx(dict(zip(NAMES, iou, strict=True)), rel=1e-12)
    assert metrics["acc"] == pytest.approx(dict(zip(NAMES, acc, strict=True)), rel=1e-12)
    assert metrics["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    assert metrics["mAcc"] == pytest.approx(acc.mean(), rel=1e-12)
    assert metrics["aAcc"] == pytest.approx(np.trace(total) / total.sum(), rel=1e-12)
    with torch.no_grad():
        labels = [
            model.segmenter(torch.from_numpy(read(path)).permute(2, 0, 1)[None]).argmax(1)[0].numpy()
            for path in paths
        ]
    near = boundary_ious([(p, t) for p, (_, t) in zip(labels, pairs, strict=True)], 3)
    assert metrics["boundary_IoU"] == pytest.approx(dict(zip(NAMES, near, strict=True)), rel=1e-12)
    assert metrics["boundary_mIoU"] == pytest.approx(np.mean(near), rel=1e-12)
    assert metrics["image_mIoU"] == pytest.approx(
        np.mean([np.nanmean(iou_of(m)) for m in matrices]), rel=1e-12
    )
    keys = ("kind", "data", "split", "images")
    assert [metrics[key] for key in keys] == ["isaseg", "folder", "val", 5]
    assert metrics["images_per_second"] > 0
    each = sorted((np.nanmean(iou_of(m)), p.name) for m, p in zip(matrices, paths, strict=True))
    assert [w["mIoU"] for w in metrics["worst"]] == pytest.approx([score for score, _ in each[:2]], rel=1e-12)
    pictures = sorted((tmp_path / "out" / "worst").iterdir())
    assert [p.name for p in pictures] == [
        f"{i:02d}_{Path(name).stem.replace(' ', '_')}.png" for i, (_, name) in enumerate(each[:2])
    ]
    assert all(min(read(p).shape[:2]) > 200 for p in (*pictures, tmp_path / "out" / "confusion.png"))


def test_another_network_is_scored_too_and_what_changed_most_is_drawn(
    network: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_checkpoint(tmp_path / "other.safetensors", 3, scale=-1)
    words = [*own, "protocol=none", "worst=1"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "save_picture", lambda *_: None)  # the scores suffice
        alone, ours = (
            evaluate_model(compose_from(*words, f"output={tmp_path}/alone", "worst=9"), load_model(path))
            for path in (other, network)
        )
    each = {w["id"]: w["mIoU"] for w in alone["worst"]}
    gains = sorted((w["mIoU"] - each[w["id"]], w["id"]) for w in ours["worst"])
    assert gains[0][0] < 0 < gains[-1][0], "the test wants one image that gains and one that loses"
    cfg = compose_from(*words, f"output={tmp_path}/out", f"against={other}")
    found = evaluate_model(cfg, load_model(network), load_model(other))
    assert found["mIoU"] == ours["mIoU"] and found["against"]["mIoU"] == alone["mIoU"]
    for kind, (gain, name) in (("worse", gains[0]), ("better", gains[-1])):
        (most,) = found["against"][kind]["most"]
        assert (most["id"], most["mIoU"] - most["against"]) == (name, pytest.approx(gain))
        assert found["against"][kind]["images"] == sum((g > 0) == (gain > 0) for g, _ in gains if g)
        assert len(list((tmp_path / "out" / "changed" / kind).iterdir())) == 1
    evaluate_model(compose_from(*words, f"output={tmp_path}/out"), load_model(network))
    assert not list(tmp_path.glob("out/changed/*/*")), "of another network, which is compared no more"


def test_what_is_drawn_of_the_worst_is_what_was_scored(
    network: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision too, which Lightning leaves when the evaluation ends, and which is nearly the same."""
    drawn: list[Any] = []
    monkeypatch.setattr(evaluation, "save_picture", lambda *args: drawn.append(args))
    words = [*own, f"output={tmp_path}", "trainer.accelerator=cpu"]
    full = evaluate_model(compose_from(*words, "worst=0"), load_model(network))
    words += ["worst=5", "trainer.precision=bf16-mixed"]
    metrics = evaluate_model(compose_from(*words), load_model(network))
    changed = np.abs(np.subtract(full["confusion"], metrics["confusion"])).sum()
    assert 0 < changed < 0.1 * np.sum(full["confusion"])
    assert len(drawn) == 5
    for worst, (_, (image, mask, _), labels, source) in zip(metrics["worst"], drawn, strict=True):
        matrix = np.zeros((3, 3), np.int64)
        np.add.at(matrix, (mask[mask != 255].numpy(), labels[mask != 255].numpy()), 1)
        assert np.nanmean(iou_of(matrix)) == pytest.approx(worst["mIoU"], rel=1e-12)
        assert image.shape[1:] == mask.shape
        assert len(source.palette) == 3


@pytest.mark.parametrize(
    ("words", "tries"),
    [
        (["trainer.benchmark=true"], False),
        (["trainer.benchmark=true", "test.mode=slide", "test.crop_size=[32,32]"], True),
        (["trainer.benchmark=false", "test.mode=slide", "test.crop_size=[32,32]"], False),
    ],
    ids=["whole", "windows", "windows, if it is wanted"],
)
def test_cudnn_tries_its_algorithms_for_windows_alone(
    words: list[str],
    tries: bool,
    network: Path,
    own: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole pictures have many sizes, and it would begin anew for each."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tries)
    evaluate_model(
        compose_from(*own, *words, "worst=0", "data.val_length=1", f"output={tmp_path}"), load_model(network)
    )
    assert torch.backends.cudnn.benchmark == tries


def test_workers_resize_what_a_protocol_resizes(
    network: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To each scale of the file; with the same result as in this process."""
    here: list[tuple[int, int]] = []

    def fitted(pixels: np.ndarray, size: tuple[int, int], flag: int) -> np.ndarray:
        here.append(size)
        return fit(pixels, size, flag)

    monkeypatch.setattr(apply, "fit", fitted)
    words = [*own, "worst=0", "test.tta=true", "test.scales=[0.5,1.5]", "data.val_batch_size=3"]
    found = []
    for workers in (0, 1):
        here.clear()
        cfg = compose_from(*words, f"data.num_workers={workers}", f"output={tmp_path}/{workers}")
        found.append(evaluate_model(cfg, load_model(network))["confusion"])
        assert len(here) == (0 if workers else 5 * 2)
    assert found[0] == found[1]


def test_ade20k_in_batches_of_mixed_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw labels from 1 on; two pictures are of one size; classes that occur nowhere are null."""
    root = fakes.make_fake_ade20k(tmp_path / "data", n=4)
    folders = [root / "images" / "validation", root / "annotations" / "validation"]
    first = [f / f"ADE_val_00000000.{end}" for f, end in zip(folders, ("jpg", "png"), strict=True)]
    for path in first:
        path.with_stem("ADE_val_00000009").write_bytes(path.read_bytes())
    pairs = []
    for path in sorted(folders[0].iterdir()):
        target = read(folders[1] / f"{path.stem}.png")
        target[target > 140] = 0  # the last classes
        Image.fromarray(target).save(folders[1] / f"{path.stem}.png")
        pairs.append((path, target.astype(int) - 1))
    for _, target in pairs:
        target[target < 0] = 255
    model = load_model(make_checkpoint(tmp_path / "model.safetensors", 150))
    model.segmenter.head.classifier.bias.data[145:] = -1000.0  # never predicted
    total = sum(scored(model, pairs, 150))
    monkeypatch.setattr(evaluation, "save_figure", lambda *_: None)  # of 150 classes, seconds
    words = ["data=ade20k", f"data.root={root}", "data.num_workers=0", f"output={tmp_path}/out", "worst=0"]
    metrics = evaluate_model(compose_from(*words, "data.val_batch_size=3"), model)
    assert (metrics["images"], metrics["confusion"]) == (5, total.tolist())
    iou, acc = list(metrics["IoU"].values()), list(metrics["acc"].values())
    assert [i for i in range(150) if iou[i] is None] == np.isnan(iou_of(total)).nonzero()[0].tolist()
    assert [i for i in range(150) if acc[i] is None] == list(range(140, 150))
    assert iou[145:] == [None] * 5
    assert metrics["mIoU"] == pytest.approx(np.nanmean(iou_of(total)), rel=1e-12)


def test_two_processes_give_the_figures_of_one(network: Path, own: list[str], tmp_path: Path) -> None:
    """Five pictures: three for one, two for the other."""
    words = [
        f"checkpoint={network}",
        *own,
        "trainer.accelerator=cpu",
        "test.tta=true",
        "test.scales=[1.0,1.5]",
    ]
    two = ["trainer.devices=2", "trainer.strategy=ddp", "output=two"]
    done = forked.run("evaluate.py", *words, *two, cwd=tmp_path, children=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning" not in done.stderr
    assert done.stdout == ""
    evaluate_model(compose_from(*words, f"output={tmp_path}/one"), load_model(network))
    one, both = (parsed(tmp_path / name / "metrics.json") for name in ("one", "two"))
    for metrics in (one, both):
        del metrics["images_per_second"]
    assert both == one
    assert both["images"] == 5
    assert len(files(tmp_path / "two" / "worst")) == 5


def test_pictures_without_a_label_that_counts(
    network: Path, own: list[str], photos: Path, tmp_path: Path
) -> None:
    """They count as pictures but are not among the worst; if there are no others, there is no score."""
    root = fakes.make_fake_folder(tmp_path / "data", n=3)
    masks = sorted((root / "masks" / "val").iterdir())
    words = [*own, f"data.root={root}", f"output={tmp_path}/out"]
    for number, path in enumerate(masks):
        Image.fromarray(np.full_like(read(path), 255)).save(path)
        if number == 0:
            metrics = evaluate_model(compose_from(*words), load_model(network))
            assert (metrics["images"], len(metrics["worst"])) == (3, 2)
            assert metrics["mIoU"] is not None
    metrics = evaluate_model(compose_from(*words), load_model(network))
    assert parsed(tmp_path / "out" / "metrics.json")["mIoU"] is None
    assert metrics["boundary_mIoU"] is metrics["image_mIoU"] is None
    assert (metrics["images"], metrics["worst"]) == (3, [])
    assert not files(tmp_path / "out" / "worst")


# ---------------------------------------------------------------- protocols


def test_lip_changes_sides_in_the_mirror(tmp_path: Path) -> None:
    """A protocol of openseg: the mirror image always belongs to it."""
    root = fakes.make_fake_lip(tmp_path / "data")
    model = load_model(make_checkpoint(tmp_path / "model.safetensors", 20))
    words = ["data=lip", f"data.root={root}", "protocol=openseg", "data.num_workers=0", "worst=0"]
    cfg = compose_from(*words, "test.resize={size:[64,64]}", f"output={tmp_path}/out")
    how = inference_of(cfg, LIP.flip_pairs)
    assert how.flip and how.flip_pairs == ((14, 15), (16, 17), (18, 19))
    assert inference_of(compose_from("data=lip", "protocol=openseg"), ()).resize == {"size": [473, 473]}
    total = np.zeros((20, 20), np.int64)
    for path in (root / "LIP" / "TrainVal_images" / "val_images").iterdir():
        mask = root / "LIP" / "TrainVal_parsing_annotations" / "val_segmentations" / f"{path.stem}.png"
        if mask.is_file():
            image = torch.from_numpy(read(path)).permute(2, 0, 1)[None]
            np.add.at(total, (read(mask), predict_labels(model.segmenter, image, how)[0].numpy()), 1)
    assert evaluate_model(cfg, model)["confusion"] == total.tolist()


# ---------------------------------------------------------------- what is left on disk


def test_everything_is_in_one_folder_and_nothing_is_stale(
    tool: Callable[..., int], network: Path, own: list[str], tmp_path: Path
) -> None:
    before = files(network.parent)
    words = [f"checkpoint={network}", *own[1:]]  # the data set follows
    assert tool(*words, "output=out", "worst=3") == 0
    assert len(files(Path("out/worst"))) == 3
    assert tool(*words, "output=out", "worst=1") == 0
    assert files(tmp_path) == {
        "cwd/out/metrics.json",
        "cwd/out/confusion.png",
        f"cwd/out/worst/{next(iter(files(Path('out/worst'))))}",
    }
    assert tool(*words, "output=out", "worst=0") == 0
    assert files(tmp_path) == {"cwd/out/metrics.json", "cwd/out/confusion.png"}
    assert files(network.parent) == before


def test_folders_are_distinguished_by_what_was_done(
    network: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = (
        [],
        ["test.tta=true"],
        ["data.val_length=2"],
        ["split=train"],
        ["trainer.precision=bf16-mixed"],
        ["data.root=elsewhere"],
    )
    paths = [str(evaluation._folder(compose_from(*own, *words))) for words in changes]
    assert len(set(paths)) == len(changes)
    assert paths[0] == str(evaluation._folder(compose_from(*own, "worst=2", "data.num_workers=3")))
    assert re.fullmatch(r"outputs/evaluate/folder_val/none_[0-9a-f]{8}", paths[0])
    assert "/folder_train/" in paths[3]
    run = evaluation._folder(compose_from(*own, "checkpoint=outputs/x/isa_seed0/checkpoints/best.ckpt"))
    assert run.name.startswith("isa_seed0_best_")


def test_a_split_is_enough_of_a_data_set(network: Path, own: list[str], tmp_path: Path) -> None:
    root = fakes.make_fake_folder(tmp_path / "data", n=2, test=True)
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            shutil.rmtree(root / kind / split)
    words = [*own, f"data.root={root}", "split=test", f"output={tmp_path}/out"]
    metrics = evaluate_model(compose_from(*words), load_model(network))
    assert (metrics["split"], metrics["images"], len(files(tmp_path / "out" / "worst"))) == ("test", 2, 2)


def test_changes_are_drawn_at_the_size_of_the_mask(network: Path, tmp_path: Path) -> None:
    """A module of the user's own may have larger masks than images."""
    sample = {
        "image": torch.zeros(3, 40, 56, dtype=torch.uint8),
        "mask": torch.zeros(80, 112).long(),
        "id": "a",
    }
    classes = tuple(NAMES)
    data = SimpleNamespace(
        source=lambda _: LabelInfo(classes, default_palette(classes), 255), samples=lambda *_: [sample]
    )
    segmenter = load_model(network).segmenter
    module: Any = SimpleNamespace(segmenter=segmenter, how=Inference(), data=data, split="val")
    evaluation._draw(module, ["a"], tmp_path / "changed", segmenter)
    assert [path.name for path in (tmp_path / "changed").iterdir()] == ["00_a.png"]

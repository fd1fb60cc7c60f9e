"""`src/evaluate.py`: figures against plain full-size ones, what follows from a checkpoint, a sentence for a mistake."""

import importlib.util
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from isaseg import config
from isaseg.checkpoints.loading import Model, load_model
from isaseg.data.sets.lip import INFO as LIP
from isaseg.errors import ConfigError
from isaseg.inference import evaluate as evaluation
from isaseg.inference.apply import predict_labels
from isaseg.inference.evaluate import evaluate
from isaseg.inference.protocol import inference_of
from tests import fakes, forked
from tests.inference.test_predict import make_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "evaluate.py"
NAMES = ["sky", "ground", "sea"]


def compose_from(*words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    return config.compose_from("evaluate", ["checkpoint=none", *words])


def with_words(cfg: DictConfig, *words: str) -> DictConfig:
    """Return the configuration with some values changed, sooner than composed again."""
    changed = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(words)))
    assert isinstance(changed, DictConfig)
    return changed


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB") if path.suffix == ".jpg" else picture)


def parsed(path: Path) -> dict[str, Any]:
    """Return JSON that has no NaN in it, which is none."""
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    return found


def scored(model: Model, pairs: list[tuple[Path, np.ndarray]], classes: int) -> list[np.ndarray]:
    """Return the confusion matrix of every picture, rows are targets, by way of full-size logits."""
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


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "own.safetensors"
    return make_checkpoint(path, 3, data="folder", classes=NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a user's folder: five pictures of different sizes in val; test has no labels."""
    root = fakes.make_fake_folder(tmp_path_factory.mktemp("photos"), n=5, test=True)
    for path in (root / "masks" / "test").iterdir():
        path.unlink()
    return root


@pytest.fixture
def own(photos: Path) -> list[str]:
    """Return the words for that folder."""
    return ["data=folder", f"data.root={photos}", "data.classes=[sky,ground,sea]", "data.num_workers=0"]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("isaseg_evaluate_tool", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Give `tool(*arguments)`: the exit code of the same command line in this process, in a folder `cwd`."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def called(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        code: int = script.main(arguments)
        return code

    yield called
    for number, handler in handlers.items():
        signal.signal(number, handler)


# ---------------------------------------------------------------- figures


def test_figures_are_those_of_full_size_logits(
    network: Path, own: list[str], photos: Path, tmp_path: Path
) -> None:
    """Pictures of different sizes; a class that occurs nowhere; the worst pictures are the worst."""
    paths = sorted((photos / "images" / "val").iterdir())
    pairs = [(p, read(photos / "masks" / "val" / f"{p.stem}.png").astype(int)) for p in paths]
    model = load_model(network)
    matrices = scored(model, pairs, 3)
    metrics = evaluate(compose_from(*own, "protocol=none", f"output={tmp_path}/out", "worst=2"), model)
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
    told = ("kind", "data", "split", "images")
    assert [metrics[key] for key in told] == ["isaseg", "folder", "val", 5]
    assert metrics["images_per_second"] > 0
    each = sorted((np.nanmean(iou_of(m)), p.name) for m, p in zip(matrices, paths, strict=True))
    assert [w["mIoU"] for w in metrics["worst"]] == pytest.approx([score for score, _ in each[:2]], rel=1e-12)
    pictures = sorted((tmp_path / "out" / "worst").iterdir())
    assert [p.name for p in pictures] == [
        f"{i:02d}_{Path(name).stem.replace(' ', '_')}.png" for i, (_, name) in enumerate(each[:2])
    ]
    assert all(min(read(p).shape[:2]) > 200 for p in (*pictures, tmp_path / "out" / "confusion.png"))


def test_what_is_drawn_of_the_worst_is_what_was_scored(
    network: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision too, which Lightning ends with the evaluation."""
    drawn = []
    monkeypatch.setattr(evaluation.report, "save_picture", lambda *args: drawn.append(args))
    words = [*own, f"output={tmp_path}", "worst=5", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]
    metrics = evaluate(compose_from(*words), load_model(network))
    assert len(drawn) == 5
    for worst, (_, image, mask, labels, palette, *_) in zip(metrics["worst"], drawn, strict=True):
        matrix = np.zeros((3, 3), np.int64)
        np.add.at(matrix, (mask[mask != 255].numpy(), labels[mask != 255].numpy()), 1)
        assert np.nanmean(iou_of(matrix)) == pytest.approx(worst["mIoU"], rel=1e-12)
        assert image.shape[1:] == mask.shape
        assert len(palette) == 3


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
    monkeypatch.setattr(evaluation.report, "plot_confusion", lambda *_: None)  # of 150 classes, seconds
    words = ["data=ade20k", f"data.root={root}", "data.num_workers=0", f"output={tmp_path}/out", "worst=0"]
    metrics = evaluate(compose_from(*words, "data.val_batch_size=3"), model)
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
    done = forked.run("evaluate.py", *words, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning" not in done.stderr
    assert done.stdout == ""
    evaluate(compose_from(*words, f"output={tmp_path}/one"), load_model(network))
    one, both = (parsed(tmp_path / name / "metrics.json") for name in ("one", "two"))
    for metrics in (one, both):
        del metrics["images_per_second"]
    assert both == one
    assert both["images"] == 5
    assert len(files(tmp_path / "two" / "worst")) == 5


def test_pictures_without_a_label_that_counts(
    network: Path, own: list[str], photos: Path, tmp_path: Path
) -> None:
    """They are counted as pictures and are not the worst; with nothing else there is no score, and that is said."""
    root = fakes.make_fake_folder(tmp_path / "data", n=3)
    masks = sorted((root / "masks" / "val").iterdir())
    words = [*own, f"data.root={root}", f"output={tmp_path}/out"]
    for number, path in enumerate(masks):
        Image.fromarray(np.full_like(read(path), 255)).save(path)
        if number == 0:
            metrics = evaluate(compose_from(*words), load_model(network))
            assert (metrics["images"], len(metrics["worst"])) == (3, 2)
            assert metrics["mIoU"] is not None
    metrics = evaluate(compose_from(*words), load_model(network))
    assert parsed(tmp_path / "out" / "metrics.json")["mIoU"] is None
    assert (metrics["images"], metrics["worst"]) == (3, [])
    assert not files(tmp_path / "out" / "worst")


def test_half_precision_is_nearly_the_same(network: Path, own: list[str], tmp_path: Path) -> None:
    model = load_model(network)
    words = [*own, "worst=0", "trainer.accelerator=cpu", f"output={tmp_path}"]
    full = evaluate(compose_from(*words), model)
    half = evaluate(compose_from(*words, "trainer.precision=bf16-mixed"), model)
    assert (
        0 < np.abs(np.subtract(full["confusion"], half["confusion"])).sum() < 0.1 * np.sum(full["confusion"])
    )


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
    assert evaluate(cfg, model)["confusion"] == total.tolist()


RECIPES = sorted(path.stem for path in (config.conf_dir() / "recipe").glob("*.yaml"))
PROTOCOLS = sorted(
    (path.stem for path in (config.conf_dir() / "protocol").glob("*.yaml")), key=len, reverse=True
)
BASE = compose_from()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_says_how_it_is_tested(recipe: str) -> None:
    protocol = next(p for p in PROTOCOLS if recipe.endswith(f"_{p}"))
    words = [f"data={recipe.removesuffix(f'_{protocol}')}", f"protocol={protocol}"]
    cfg = compose_from(*words)
    assert set(cfg.test) == set(BASE.test), "no key that nobody reads"
    how = inference_of(cfg, ())
    several = inference_of(with_words(cfg, "test.tta=true"), ())
    openseg = protocol == "openseg"
    assert (how.scaling, how.average) == (("network", "logits") if openseg else ("file", "probabilities"))
    assert how.interpolation == ("cubic" if openseg else "linear")
    assert how.resize == cfg.data.val_resize
    assert several.flip and 1.0 in several.scales
    assert several.resize == (how.resize if openseg else None)


def described(kind: str, data: str | None, protocol: str | None, align_corners: bool = False) -> Model:
    known = {"data": data, "protocol": protocol, "head": {"align_corners": align_corners}}
    return Model(torch.nn.Identity(), kind, {k: v for k, v in known.items() if v is not None})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        (described("isaseg", "lamps", "none"), {}, ("lamps", "none")),
        (described("isaseg", "cityscapes", "mmseg"), {}, ("cityscapes", "mmseg")),
        (described("isaseg", "cityscapes", "openseg", True), {}, ("cityscapes", "openseg")),
        (described("isaseg", "camvid", None), {}, ("camvid", "none")),
        (described("mmseg", "cityscapes", "mmseg"), {}, ("cityscapes", "mmseg")),
        (described("mmseg", "cityscapes", "mmseg", True), {}, ("cityscapes", "mmseg_769")),
        (described("mmseg", "ade20k", "mmseg", True), {}, ("ade20k", "mmseg")),
        (described("mmseg", None, "mmseg"), {"data": "pascal_voc"}, ("pascal_voc", "mmseg")),
        (described("mmseg", "cityscapes", "mmseg"), {"data": "camvid"}, ("camvid", "none")),
        (described("openseg", "lip", "openseg", True), {}, ("lip", "openseg")),
    ],
    ids=lambda value: f"{value.kind}-{value.description}" if isinstance(value, Model) else None,
)
def test_data_and_protocol_follow_from_the_checkpoint(
    model: Model, given: dict[str, str], expected: tuple[str, str], script: ModuleType
) -> None:
    found = script._following(given, model, Path("model.pth"))
    assert (found["data"], found["protocol"]) == expected


def test_what_is_given_comes_before_what_follows(
    tool: Callable[..., int], tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = make_checkpoint(tmp_path / "city.safetensors", 19, data="cityscapes", protocol="openseg")
    seen: list[DictConfig] = []
    monkeypatch.setattr(evaluation, "evaluate", lambda cfg, model: seen.append(cfg))
    assert tool(f"checkpoint={city}", "data.root=x") == 0
    assert tool(f"checkpoint={city}", "data.root=x", "protocol=mmseg", "test.tta=true") == 0
    assert [cfg.data.name for cfg in seen] == ["cityscapes", "cityscapes"]
    assert [cfg.test.scaling for cfg in seen] == ["network", "file"]
    assert seen[1].test.tta


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


def test_folders_are_told_apart_by_what_was_done(
    network: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = (
        [],
        ["test.tta=true"],
        ["data.val_length=2"],
        ["split=train"],
        ["trainer.precision=bf16-mixed"],
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
    metrics = evaluate(compose_from(*words), load_model(network))
    assert (metrics["split"], metrics["images"], len(files(tmp_path / "out" / "worst"))) == ("test", 2, 2)


# ---------------------------------------------------------------- mistakes


def told(
    capsys: pytest.CaptureFixture[str], tool: Callable[..., int], words: list[str], code: int = 2
) -> str:
    """Return the one line on stderr of a call that fails; it leaves no file."""
    assert tool(*words) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert not files(Path())
    return lines[0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["test.mode=windows"], "test.mode to be one of whole, slide, got windows"),
        (
            ["test.mode=slide", "test.crop_size=[0,64]"],
            "test.crop_size as [height, width] in pixels, got [0, 64]",
        ),
        (["test.mode=slide", "test.crop_size=null"], "test.crop_size as [height, width] for test.mode=slide"),
        (["test.mode=slide", "test.stride=9"], "test.stride as [height, width] in pixels, got 9"),
        (
            ["test.mode=slide", "test.crop_size=[8,8]", "test.stride=[8,9]"],
            "got [8, 9]; larger ones leave gaps",
        ),
        (["test.resize=512"], "test.resize as {short_side: S}"),
        (["test.tta_resize={long_side:5}"], "test.tta_resize as {short_side: S}"),
        (["test.interpolation=nearest"], "test.interpolation to be one of linear, cubic"),
        (["test.tta=maybe"], "test.tta to be one of True, False, got maybe"),
        (["test.flip=2"], "test.flip to be one of True, False, got 2"),
        (["test.scales=[]"], "test.scales as a list of factors above 0"),
        (["test.scales=1.5"], "test.scales as a list of factors above 0"),
        (["test.scales=[1.0,0]"], "got [1.0, 0]"),
        (["test.scales=[.inf]"], "test.scales as a list of factors above 0 and at most 16, got [inf]"),
        (["test.average=mean"], "test.average to be one of probabilities, logits"),
        (["test.scaling=input"], "test.scaling to be one of file, network"),
        (["test.final=area"], "test.final to be one of linear, cubic"),
        (["test.pad_multiple=0"], "test.pad_multiple to be an integer of at least 1, got 0"),
        (["test.batch=0"], "test.batch to be an integer of at least 1, got 0"),
    ],
)
def test_a_value_that_cannot_be(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        inference_of(with_words(BASE, *words), ())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["test.mode=slide", "test.crop_size=[8,8]", "test.stride=[8,9]"],
            "got [8, 9]; larger ones leave gaps",
        ),
        (["test.scales=[]"], "test.scales as a list of factors above 0"),
        (["test.scale=[1.0]"], "no configuration key 'test.scale'; did you mean 'test.scales'?"),
        (["wurst=3"], "no configuration key 'wurst'; did you mean 'worst'?"),
        (["protocol=mmsec"], "no option 'mmsec' in the group protocol; did you mean 'mmseg'?"),
        (["worst=-1"], "worst to be an integer of at least 0, got worst=-1"),
        (["worst=all"], "worst to be an integer of at least 0, got worst=all"),
        (["data.val_length=0"], "data.val_length to be an integer of at least 1"),
        (["data.val_batch_size=0"], "data.val_batch_size to be an integer of at least 1"),
        (["split=tset"], "split to be train, val or test, got split=tset"),
        (["split=test"], "a split with labels, got split=test, whose labels are not public"),
        (["data.classes=[sky,ground]"], "a network of 2 classes for data=folder, got 3 in '"),
        (["data.klasses=[sky]"], "no configuration key 'data.klasses'"),
        (["trainer.precision=17"], "precision"),
        (["test.tta"], "expected KEY=VALUE, got 'test.tta'"),
        (["--tta"], "expected KEY=VALUE, got '--tta'"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    words: list[str],
    text: str,
    tool: Callable[..., int],
    network: Path,
    own: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert text in told(capsys, tool, [f"checkpoint={network}", *own, "output=out", *words])


def test_a_wrong_checkpoint_is_told_in_a_sentence(
    tool: Callable[..., int], tmp_path: Path, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = make_checkpoint(tmp_path / "nameless.safetensors", 3)
    (tmp_path / "broken.pth").write_bytes(nameless.read_bytes()[:5000])
    assert "value for checkpoint, got none; give it as checkpoint=VALUE" in told(capsys, tool, own)
    assert "'no.pth', which does not exist" in told(capsys, tool, ["checkpoint=no.pth", *own])
    assert "broken.pth" in told(capsys, tool, [f"checkpoint={tmp_path}/broken.pth", *own])
    line = told(capsys, tool, [f"checkpoint={nameless}"])
    assert f"expected data=NAME, since '{nameless}' does not say" in line
    line = told(capsys, tool, [f"checkpoint={nameless}", "data=cityscapes"])
    assert "a network of 19 classes for data=cityscapes, got 3 in" in line


def test_a_key_of_the_data_set_that_the_checkpoint_names(
    tool: Callable[..., int], network: Path, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={network}", *own[1:]]
    assert "no configuration key 'data.class'" in told(capsys, tool, [*words, "data.class=[a]"])


def test_a_broken_picture_is_told_and_nothing_is_written(
    tool: Callable[..., int],
    network: Path,
    own: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = fakes.make_fake_folder(tmp_path / "data", n=2)
    path = root / "images" / "val" / "a photo 1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    line = told(capsys, tool, [f"checkpoint={network}", *own, f"data.root={root}", "output=out"])
    assert "a photo 1.jpg" in line


def test_ctrl_c_leaves_nothing(
    tool: Callable[..., int],
    network: Path,
    own: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "predict_labels", interrupted)
    line = told(capsys, tool, [f"checkpoint={network}", *own, "output=out"], 130)
    assert line == "error: interrupted; nothing is written"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (NAMES, None),
        (["Sky", "ground ", "sea, ocean"], None),
        (["sky", "sea", "ground"], "class 1 is 'sea' in the checkpoint and 'ground' in the data set"),
        (None, None),
    ],
)
def test_classes_of_other_names_are_told(
    names: list[str] | None,
    said: str | None,
    network: Path,
    own: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load_model(network)
    model.description["classes"] = names
    metrics = evaluate(compose_from(*own, "worst=0", "data.val_length=1", f"output={tmp_path}"), model)
    assert metrics["images"] == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [] if said is None else said in warnings[0]


def test_a_data_set_that_is_not_there(
    tool: Callable[..., int], network: Path, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(f"checkpoint={network}", *own, "data.root=nowhere", "output=out") == 2
    assert capsys.readouterr().err.startswith(
        "error: data set not found: expected images and masks in a folder"
    )
    assert not files(Path())


def test_the_words_of_the_help_are_understood(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (tool("--help"), tool()) == (0, 2)
    text = capsys.readouterr().out
    words = set(re.findall(r"(?<=\s)[\w.]+=[\w.\[\],-]+(?=\s)", text.split("examples:")[0]))
    assert len(words) > 10
    compose_from(*words)


@pytest.mark.parametrize(
    ("classes", "expected"), [(["a b", "c,d"], '["a b", "c,d"]'), (["${oc.env:HOME}", "b"], None)]
)
def test_the_classes_of_a_users_folder_follow_from_the_checkpoint(
    classes: list[str], expected: str | None, script: ModuleType
) -> None:
    """But for names that OmegaConf would resolve: the file may be a stranger's."""
    model = described("isaseg", "folder", "none")
    model.description["classes"] = classes
    assert script._following({}, model, Path("model.pth")).get("data.classes") == expected

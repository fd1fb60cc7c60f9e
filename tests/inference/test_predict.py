"""`src/predict.py` as a user calls it: what lies in the output folder, exit codes, one sentence for each mistake."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch import Tensor

from isaseg import config
from isaseg.checkpoints.loading import load_segmenter
from isaseg.cli import predict as cli
from isaseg.data.decode import read_image
from isaseg.data.info import dataset_info
from isaseg.inference import outputs, predict
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.label_files import known_format
from tests import forked
from tests.inference.tiny import files, make_checkpoint, read, save_picture

ROOT = Path(__file__).parents[2]
COMMAND = cli.main
PALETTE = [[10 * i, 255 - 20 * i, i] for i in range(7)]


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "city.safetensors", 19, data="cityscapes")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = [f"thing {i}" for i in range(7)]
    path = tmp_path_factory.mktemp("model") / "own.safetensors"
    return make_checkpoint(path, 7, data="folder", classes=classes, palette=PALETTE)


def expected(checkpoint: Path, image: Path, how: Inference | None = None) -> np.ndarray:
    pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1)[None]
    segmenter = load_segmenter(checkpoint)
    with torch.no_grad():
        labels = segmenter(pixels).argmax(1) if how is None else predict_labels(segmenter, pixels, how)
    return labels[0].numpy()


def test_a_folder_of_all_kinds_of_pictures(cityscapes: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user does it."""
    folder, out = tmp_path / "in", tmp_path / "out put"
    good = {
        "a.png": save_picture(folder / "a.png", 64, 96),
        "long.jpg": save_picture(folder / "long.jpg", 3, 500),
        "one.bmp": save_picture(folder / "sub dir" / "one.bmp", 1, 1),
        "grey.png": save_picture(folder / "grey.png", mode="L"),
        "index.png": save_picture(folder / "index.png", mode="P"),
        "print.jpg": save_picture(folder / "sub dir" / "print.jpg", mode="CMYK"),
        "clear.png": save_picture(folder / "clear.png", mode="RGBA"),
    }
    (folder / "link.png").symlink_to(save_picture(tmp_path / "elsewhere" / "real.png"))
    good["link.png"] = folder / "link.png"
    (folder / "zero.png").touch()
    (folder / "cut.jpg").write_bytes(good["long.jpg"].read_bytes()[:400])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
    (folder / "notes.txt").write_text("no picture")
    words = [f"checkpoint={cityscapes}", f"input={folder}", f"output={out}", "device=cpu"]
    done = forked.run("predict.py", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "Traceback" not in done.stderr, done.stderr
    for name in ("cut.jpg", "deep.png", "zero.png"):
        assert sum(f"'{folder / name}'; replace the file" in line for line in errors) == 1
    assert (
        done.stdout.startswith("8 of 11 pictures, ")
        and f"In '{out}': labels/*.png hold the ids" in done.stdout
    )
    stems = {path.relative_to(folder).with_suffix("").as_posix() for path in good.values()}
    labels, overlays = {f"labels/{stem}.png" for stem in stems}, {f"overlays/{stem}.jpg" for stem in stems}
    assert files(out) == labels | overlays | {"legend.png"}
    ids, seen = known_format("cityscapes").ids, set()
    for path in good.values():
        stem = path.relative_to(folder).with_suffix("")
        found = read(out / "labels" / f"{stem}.png")
        assert np.array_equal(found, ids[expected(cityscapes, path)])
        assert read(out / "overlays" / f"{stem}.jpg").shape == (*found.shape, 3)
        seen |= set(found.flat)
    assert len(seen) > 4
    assert files(tmp_path) == {f"in/{name}" for name in files(folder)} | {
        f"out put/{name}" for name in files(out)
    } | {"elsewhere/real.png"}


def test_a_networks_own_classes_have_its_palette(own: Path, tool: Callable[..., int], tmp_path: Path) -> None:
    image = save_picture(tmp_path / "a.jpg")
    assert tool(f"checkpoint={own}", f"input={image}", "output=out") == 0
    labels = expected(own, image)
    with Image.open("out/labels/a.png") as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), labels)
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.array(PALETTE)[labels])
    inside = (labels[1:] == labels[:-1]).all(1).nonzero()[0]  # rows without a border above
    blend = (read_image(image).astype(int) + np.array(PALETTE)[labels]) / 2
    assert np.abs(read(Path("out/overlays/a.jpg"))[inside + 1].astype(int) - blend[inside + 1]).mean() < 30
    legend = {tuple(c) for c in np.unique(read(Path("out/legend.png")).reshape(-1, 3), axis=0).tolist()}
    assert {tuple(colour) for colour in PALETTE} <= legend


def test_a_data_set_can_be_named(tool: Callable[..., int], tmp_path: Path) -> None:
    image, path = save_picture(tmp_path / "a.jpg"), make_checkpoint(tmp_path / "m.safetensors", 150)
    assert tool(f"checkpoint={path}", f"input={image}", "output=out", "data=ade20k", "overlays=false") == 0
    assert np.array_equal(read(Path("out/labels/a.png")), expected(path, image) + 1)
    assert files(Path("out")) == {"labels/a.png"}


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (["test.mode=slide", "test.crop_size=[32,48]"], Inference(crop_size=(32, 48))),
        (
            ["test.mode=slide", "test.crop_size=[32,32]", "test.stride=[16,32]"],
            Inference(crop_size=(32, 32), stride=(16, 32)),
        ),
        (["whole_pixels=6299", "test.crop_size=[48,48]"], Inference(crop_size=(48, 48))),
        (["whole_pixels=6300", "test.crop_size=[48,48]"], Inference()),
        (["test.mode=whole", "whole_pixels=0"], Inference()),
        (["test.tta=true", "test.scales=[0.5,1.5]"], Inference(scales=(0.5, 1.5), flip=True)),
        (["test.resize={short_side:60}"], Inference(resize={"short_side": 60})),
    ],
)
def test_how_the_network_is_applied_can_be_said(
    words: list[str], how: Inference, cityscapes: Path, tool: Callable[..., int], tmp_path: Path
) -> None:
    image = save_picture(tmp_path / "a.png", 90, 70)
    assert tool(f"checkpoint={cityscapes}", f"input={image}", "output=out", *words) == 0
    ids = known_format("cityscapes").ids
    assert np.array_equal(read(Path("out/labels/a.png")), ids[expected(cityscapes, image, how)])


def test_half_precision_is_nearly_the_same(
    cityscapes: Path, tool: Callable[..., int], tmp_path: Path
) -> None:
    image = save_picture(tmp_path / "a.png", 90, 70)
    words = (f"checkpoint={cityscapes}", f"input={image}", "overlays=false")
    assert tool(*words, "output=full") == 0 and tool(*words, "output=half", "precision=bf16") == 0
    full, half = read(Path("full/labels/a.png")), read(Path("half/labels/a.png"))
    assert 0 < (full != half).mean() < 0.1


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([], Inference()),
        (["data=cityscapes"], Inference()),
        (["data=ade20k", "protocol=mmseg"], Inference(resize={"short_side": 512, "long_side": 2048})),
        (["data=ade20k", "protocol=mmseg", "test.resize=null"], Inference()),
        (
            ["data=cityscapes", "protocol=mmseg_769", "test.resize=null"],
            Inference(crop_size=(769, 769), stride=(513, 513)),
        ),
    ],
)
def test_a_protocol_says_how_pictures_are_resized_and_cut(words: list[str], how: Inference) -> None:
    GlobalHydra.instance().clear()
    cfg = config.compose_from("predict", words)
    found = predict.for_picture(predict.windowed(cfg), cfg.test.mode, cfg.whole_pixels, (1024, 2048))
    assert replace(found, scales=how.scales) == how


@pytest.mark.parametrize(
    ("mode", "resize", "size", "cut"),
    [
        ("auto", None, (40, 100), False),
        ("auto", None, (40, 101), True),
        ("auto", {"short_side": 20}, (400, 1000), False),
        ("whole", None, (10_000, 10_000), False),
        ("slide", None, (1, 1), True),
    ],
)
def test_only_large_pictures_are_cut_into_windows_unless_told(
    mode: str, resize: dict[str, int] | None, size: tuple[int, int], cut: bool
) -> None:
    windows = Inference(resize=resize, crop_size=(64, 96))
    assert predict.for_picture(windows, mode, 4000, size) == (windows if cut else Inference(resize=resize))


def test_left_and_right_change_places_in_a_mirror(
    tool: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Inference] = []

    def record(segmenter: Any, image: Tensor, how: Inference) -> Tensor:
        seen.append(how)
        return torch.zeros(1, *image.shape[2:], dtype=torch.uint8)

    monkeypatch.setattr(predict, "predict_labels", record)
    path = make_checkpoint(tmp_path / "m.safetensors", 20, data="lip")
    words = ("output=out", "data=lip", "protocol=openseg")
    assert tool(f"checkpoint={path}", f"input={save_picture(tmp_path / 'a.png')}", *words) == 0
    assert (seen[0].flip, seen[0].flip_pairs, seen[0].average) == (
        True,
        dataset_info("lip").flip_pairs,
        "logits",
    )


ODD = (
    "a, (b) = ${oc.env:HOME}.png",
    "-x.png",
    "a\nb.png",
    "[1].png",
    "ключ=значение.png",
    "~.png",
    "--help.png",
)


def test_files_of_any_name_follow_two_dashes(
    own: Path, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ODD:
        save_picture(Path(name), 8, 8)
    save_picture(tmp_path / "up" / "above.png", 8, 8)
    given = (*ODD, "../up/above.png")
    assert tool(f"checkpoint={own}", "output=o", "overlays=false", "--", *given) == 0, capsys.readouterr().err
    assert files(Path("o")) == {f"labels/{name}" for name in (*ODD, "above.png")}
    assert tool(f"checkpoint={own}", "output=o", "input=x", "--", "a.png") == 2
    assert (
        "expected pictures either as input=... or after --, got input=x and 'a.png'"
        in capsys.readouterr().err
    )
    assert (
        tool(f"checkpoint={own}", "output='q, (u)'", "overlays=false", f"input=['{ODD[0][:3]}',\"{ODD[3]}\"]")
        == 2
    )
    assert "got input='a, ', which is neither" in capsys.readouterr().err
    assert (
        tool(f"checkpoint={own}", "output='q, (u)'", "overlays=false", f"input=[\"{ODD[3]}\",'../up']") == 0
    )
    assert files(Path("q, (u)")) == {"labels/[1].png", "labels/above.png"}


def test_what_an_earlier_call_wrote_is_replaced_and_not_taken_for_input(
    own: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_picture(Path("a.png"), 8, 8)
    words = (f"checkpoint={own}", "input=.", "output=./out")
    assert tool(*words) == 0
    before = files(Path())
    Path("out/labels/a.png").write_bytes(b"old")
    assert tool(*words) == 0
    assert files(Path()) == before and read(Path("out/labels/a.png")).shape == (8, 8)
    assert capsys.readouterr().out.count("1 of 1 pictures") == 2


def test_a_submission_is_made_only_of_all_pictures(
    cityscapes: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stems = ["berlin/berlin_000000_000019", "bonn/bonn_000001_000019"]
    for stem in stems:
        save_picture(Path(f"test/{stem}_leftImg8bit.png"))
    words = (f"checkpoint={cityscapes}", "input=test", "output=out", "submission=true")
    assert tool(*words) == 0
    assert "submission.zip has 2 of them (the test split: 1525)" in capsys.readouterr().out
    with zipfile.ZipFile("out/submission.zip") as archive:
        assert archive.namelist() == [f"{stem.split('/')[1]}_labelIds.png" for stem in stems]
        assert (
            archive.read(archive.namelist()[0]) == Path(f"out/labels/{stems[0]}_leftImg8bit.png").read_bytes()
        )
    Path("out/submission.zip").unlink()
    Path(f"test/{stems[1]}_leftImg8bit.png").write_bytes(b"")
    assert tool(*words) == 2
    out, err = capsys.readouterr()
    assert (
        "error: submission.zip is not written, 1 pictures would be missing" in err and "submission" not in out
    )
    assert not Path("out/submission.zip").exists()


def test_too_little_memory_is_told_and_the_others_are_done(
    own: Path, tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_picture(Path("in/large.png"), 60, 60)
    save_picture(Path("in/small.png"), 8, 8)

    def small_only(segmenter: Any, image: Tensor, how: Inference) -> Tensor:
        if image.shape[2] > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict_labels(segmenter, image, how)

    monkeypatch.setattr(predict, "predict_labels", small_only)
    assert tool(f"checkpoint={own}", "input=in", "output=out", "overlays=false") == 2
    assert (
        "'in/large.png' in the memory of the device, got too little; give test.mode"
        in capsys.readouterr().err
    )
    assert files(Path("out")) == {"labels/small.png"}


@pytest.mark.parametrize("what", ["write_label_file", "write_overlay", "write_legend"])
def test_a_full_disk_is_told(
    what: str,
    own: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_picture(Path("a.png"), 8, 8)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, what, full)
    assert tool(f"checkpoint={own}", "input=a.png", "output=out") == 2
    err = capsys.readouterr().err
    assert (
        err
        == "error: expected to write 'out', got: No space left on device; make room, or give another output\n"
    )


def test_an_output_that_is_no_folder_is_told_before_the_work(
    own: Path, tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_picture(Path("a.png"), 8, 8)
    Path("taken").write_text("a file")
    monkeypatch.setattr(predict, "predict_labels", None)
    assert tool(f"checkpoint={own}", "input=a.png", "output=taken") == 2
    assert "expected to write 'taken', got: File exists" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_has_its_own_exit_code(
    number: signal.Signals,
    code: int,
    own: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_picture(Path("in/a.png"), 8, 8)
    save_picture(Path("in/b.png"), 9, 9)

    def second(segmenter: Any, image: Tensor, how: Inference) -> Tensor:
        if image.shape[2] == 9:
            os.kill(os.getpid(), number)
        return predict_labels(segmenter, image, how)

    monkeypatch.setattr(predict, "predict_labels", second)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell's background
    try:
        assert tool(f"checkpoint={own}", "input=in", "output=out") == code
    finally:
        signal.signal(signal.SIGINT, ignored)
    word = {130: "interrupted", 143: "terminated"}[code]
    assert capsys.readouterr().err.startswith(f"error: {word}; what is written is whole")
    assert files(Path("out")) == {"labels/a.png", "overlays/a.jpg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "outputt=x",
            "no configuration key 'outputt'; did you mean 'output'? see --help",
        ),
        ("test.crop_sise=[4,4]", "no configuration key 'test.crop_sise'; did you mean 'test.crop_size'?"),
        ("data=cityscape", "no option 'cityscape' in the group data; did you mean 'cityscapes'?"),
        ("a.png", "expected KEY=VALUE, got 'a.png'; see --help"),
        ("--fast", "expected KEY=VALUE, got '--fast'"),
        ("output=a=b", "expected KEY=VALUE, got 'output=a=b'; quotes may be missing, see --help"),
        ("output=x input=a.png", "expected a value for checkpoint, got none; give it as checkpoint=VALUE"),
        ("checkpoint=x input=a.png", "expected a value for output"),
        ("checkpoint=x output= input=a.png", "expected a path as output, got none"),
        ("checkpoint=x output=x", "expected pictures, got none; give input="),
        ("checkpoint=x output=x input=nowhere", "expected a picture or a folder, got input='nowhere'"),
        (
            "checkpoint=x output=x input=a.png",
            "expected a checkpoint file, got path='x', which does not exist",
        ),
        ("checkpoint=x output=x overlays=yess", "expected overlays to be true or false, got overlays=yess"),
        ("checkpoint=x output=x overlays=1", "expected overlays to be true or false, got overlays=1"),
        ("checkpoint=x output=x submission=2", "expected submission to be true or false"),
        ("checkpoint=x output=x precision=16", "expected precision to be 32 or bf16, got precision=16"),
        ("checkpoint=x output=x max_pixels=0", "expected max_pixels to be an integer of at least 1"),
        ("checkpoint=x output=x whole_pixels=-1", "expected whole_pixels to be an integer of at least 0"),
        (
            "checkpoint=x output=x device=gpu",
            "expected device to be auto, cpu, cuda or cuda:NUMBER, got device=gpu",
        ),
        ("checkpoint=x output=x device=cuda:99", "expected a device that is there, got device=cuda:99 and"),
        ("checkpoint=x output=x test.mode=slides", "expected test.mode to be auto, whole or slide"),
        (
            "checkpoint=x output=x test.crop_size=512",
            "expected test.crop_size as [height, width] in pixels, got 512",
        ),
        ("checkpoint=x output=x test.crop_size=null", "expected test.crop_size as [height, width]"),
        (
            "checkpoint=x output=x test.crop_size=[8,8] test.stride=[8,9]",
            "expected test.stride of at most test.crop_",
        ),
        ("checkpoint=x output=x test.scales=[]", "expected test.scales as a list"),
        ("checkpoint=x output=x test.resize=512", "expected test.resize as {short_side: S}"),
        ("checkpoint=x output=x protocol=mmseg", "no values of protocol=mmseg are known for data=None"),
        (
            "checkpoint=x output=x protocol=mmseg data=camvid",
            "no values of protocol=mmseg are known for data=camvid",
        ),
        (
            "checkpoint=x output=x protocol=mseg",
            "no option 'mseg' in the group protocol; did you mean 'mmseg'?",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: str, message: str, tool: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("a.png").touch()
    assert tool(*arguments.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("error: ") == 1 and err.count("\n") == 1, err
    assert message in err and out == ""
    assert files(tmp_path) == {"cwd/a.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data=ade20k", "expected a network of the 150 classes of ADE20K, got one of 19"),
        ("submission=true", "expected pictures named <city>_<6 digits>_<6 digits>_leftImg8bit"),
        ("submission=true data=folder", "expected a network of Cityscapes for submission=true"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_told_before_the_work(
    words: str, message: str, cityscapes: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_picture(Path("a.png"), 8, 8)
    assert tool(f"checkpoint={cityscapes}", "input=a.png", "output=out", *words.split()) == 2
    assert message in capsys.readouterr().err and files(Path()) == {"a.png"}


def test_a_typo_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "src" / "predict.py"), "outputt=x"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and "did you mean 'output'?" in done.stderr


@pytest.mark.parametrize("arguments", ["--help", "-h", "data=lip --help", ""])
def test_help_tells_the_keys(
    arguments: str, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(*arguments.split()) == (0 if arguments else 2)
    text = capsys.readouterr().out
    assert text.startswith("usage: isaseg predict checkpoint=FILE input=FOLDER_OR_FILES output=DIR")
    assert max(len(line) for line in text.splitlines()) <= 122


def test_what_the_help_shows_composes(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("--help")
    text = capsys.readouterr().out
    examples = re.findall(r"^  isaseg predict (.+)$", text, flags=re.MULTILINE)
    keys = re.findall(r"^  ([a-z_.]+=\S+)", text, flags=re.MULTILINE)
    assert len(examples) == 3 and len(keys) > 10
    monkeypatch.setattr(predict, "predict_pictures", lambda cfg, files: predict.check_prediction(cfg) or 0)
    monkeypatch.setattr(predict.torch.cuda, "device_count", lambda: 2)
    for line in examples:
        assert tool(*shlex.split(line)) == 0
    assert tool("output=x", *keys) == 0, capsys.readouterr().err
    (quoted,) = re.findall(r'^"(input=.+)";', text, flags=re.MULTILINE)
    assert tool("checkpoint=x", "output=x", quoted) == 0

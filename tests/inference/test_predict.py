"""`isaseg predict` as a user calls it: what lies in the output folder."""

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
from isaseg.inference import predict
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.label_files import known_format
from tests import forked
from tests.inference.tiny import PALETTE, files, make_checkpoint, read, save_picture

ROOT = Path(__file__).parents[2]
COMMAND = cli.main


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
    assert files(out) == labels | overlays | {"legend.png", "contact_sheet.jpg"}
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


def test_a_networks_own_classes_have_its_palette(
    own_network: Path, tool: Callable[..., int], tmp_path: Path
) -> None:
    image = save_picture(tmp_path / "a.jpg")
    assert tool(f"checkpoint={own_network}", f"input={image}", "output=out") == 0
    labels = expected(own_network, image)
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
    assert tool(f"checkpoint={path}", f"input={image}", "output=out", "data=ade20k", "write=[labels]") == 0
    assert np.array_equal(read(Path("out/labels/a.png")), expected(path, image) + 1)
    assert files(Path("out")) == {"labels/a.png", "contact_sheet.jpg"}


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
        (
            ["test.resize={short_side:35}", "whole_pixels=1600", "test.crop_size=[24,24]"],
            Inference(resize={"short_side": 35}),
        ),
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
    words = (f"checkpoint={cityscapes}", f"input={image}", "write=[labels]")
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
    *("-x.png", "a\nb.png", "[1].png", "ключ=значение.png", "~.png", "--help.png"),
)


def test_files_of_any_name_follow_two_dashes(
    own_network: Path, tool: Callable[..., int], refused: Callable[..., str], tmp_path: Path
) -> None:
    for name in ODD:
        save_picture(Path(name), 8, 8)
    save_picture(tmp_path / "up" / "above.png", 8, 8)
    words = (f"checkpoint={own_network}", "write=[labels]")
    assert tool(*words, "output=o", "--", *ODD, "../up/above.png") == 0
    assert files(Path("o")) == {f"labels/{name}" for name in (*ODD, "above.png")} | {"contact_sheet.jpg"}
    line = refused(*words, "output=o", "input=x", "--", "a.png")
    assert "expected pictures either as input=... or after --, got input=x and 'a.png'" in line
    line = refused(*words, "output='q, (u)'", f"input=['{ODD[0][:3]}',\"{ODD[3]}\"]")
    assert "got input='a, ', which is neither" in line
    assert tool(*words, "output='q, (u)'", f"input=[\"{ODD[3]}\",'../up']") == 0
    assert files(Path("q, (u)")) == {"labels/[1].png", "labels/above.png", "contact_sheet.jpg"}


def test_what_an_earlier_call_wrote_is_replaced_and_not_taken_for_input(
    own_network: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_picture(Path("a.png"), 8, 8)
    words = (f"checkpoint={own_network}", "input=.", "output=./out")
    assert tool(*words) == 0
    before = files(Path())
    Path("out/labels/a.png").write_bytes(b"old")
    assert tool(*words) == 0
    assert files(Path()) == before and read(Path("out/labels/a.png")).shape == (8, 8)
    assert capsys.readouterr().out.count("1 of 1 pictures") == 2

"""`isaseg predict write=[probabilities,entropy]`: what the files hold, how they are made, and the contact sheet."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from isaseg.checkpoints.loading import load_segmenter
from isaseg.cli import predict as cli
from isaseg.data.decode import read_image
from isaseg.inference import apply, predict, prediction_files
from isaseg.inference.apply import Inference
from isaseg.inference.probabilities import collected, normalised_entropy
from tests.inference.tiny import files, make_checkpoint, predict_logits, read, save_picture

COMMAND = cli.main
VIOLET, YELLOW = (68, 1, 84), (253, 231, 36)
TTA = ["test.tta=true", "test.scales=[0.5,1.0]"]
OPENSEG = ["test.scaling=network", "test.final=cubic", "test.pad_multiple=8", "test.resize={short_side:50}"]


@pytest.mark.parametrize("strip", [2**21, 2**12])
@pytest.mark.parametrize(
    ("words", "how", "views"),
    [
        ([], Inference(), 1),
        (
            ["test.mode=slide", "test.crop_size=[32,48]"],
            Inference(crop_size=(32, 48)),
            1,
        ),
        (TTA, Inference(scales=(0.5, 1.0), flip=True), 0),
        (
            [*TTA, *OPENSEG, "test.average=logits"],
            Inference(
                {"short_side": 50},
                scales=(0.5, 1.0),
                flip=True,
                average="logits",
                scaling="network",
                pad_multiple=8,
                final="cubic",
            ),
            4,
        ),
    ],
)
def test_probabilities_are_those_after_averaging_and_agree_with_the_labels(
    words: list[str],
    how: Inference,
    views: int,
    strip: int,
    own_network: Path,
    tool: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apply, "_STRIP", strip)
    image = save_picture(tmp_path / "a.png", 70, 90)
    assert (
        tool(
            f"checkpoint={own_network}", f"input={image}", "output=o", "write=[labels,probabilities]", *words
        )
        == 0
    )
    assert files(Path("o")) == {"labels/a.png", "probabilities/a.npy", "contact_sheet.jpg"}
    found, labels = np.load("o/probabilities/a.npy"), read(Path("o/labels/a.png"))
    assert found.dtype == np.float16 and found.shape == (70, 90, 7)
    result = predict_logits(
        load_segmenter(own_network), torch.from_numpy(read_image(image)).permute(2, 0, 1)[None], how
    )[0]
    expected = (result if views == 0 else (result / views).softmax(0)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=1e-3)
    of_label = np.take_along_axis(found, labels[..., None].astype(int), 2)[..., 0]
    assert (of_label == found.max(2)).all(), (
        "rounding keeps the order, so the label is the largest or one of several"
    )
    assert (found.argmax(2) == labels).mean() > 0.98


def test_cubic_resizing_leaves_no_negative_probability(
    own_network: Path, tool: Callable[..., int], tmp_path: Path
) -> None:
    image = save_picture(tmp_path / "a.png", 70, 90)
    words = (*TTA, *OPENSEG, "test.average=probabilities", "write=[probabilities]")
    assert tool(f"checkpoint={own_network}", f"input={image}", "output=o", *words) == 0
    found = np.load("o/probabilities/a.npy").astype(np.float32)
    assert found.min() >= 0 and np.abs(found.sum(2) - 1).max() < 3e-3


def test_a_strip_is_written_before_the_next_is_made() -> None:
    """So that the probabilities of a picture of 20,000 pixels a side need no memory."""
    file, classes = io.BytesIO(), 5
    expected = torch.rand(6, 9, classes).softmax(2).half()

    def strips() -> Iterator[tuple[Tensor, Tensor]]:
        for top in range(0, 6, 2):
            assert file.tell() >= top * 9 * classes * 2
            rows = expected[top : top + 2].float().permute(2, 0, 1)
            yield rows.argmax(0).byte(), rows

    labels, _ = collected(strips(), (6, 9), file)
    file.seek(0)
    assert np.array_equal(np.load(file), expected.numpy()) and np.array_equal(labels, expected.argmax(2))


def test_too_small_a_disk_is_reported_before_the_work(
    own_network: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, side in (("large", 60), ("small", 8)):
        save_picture(Path(f"in/{name}.png"), side, side)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    run = predict.predict_probabilities

    def small_only(segmenter: object, image: Tensor, how: Inference) -> object:
        assert image.shape[2] == 8
        return run(segmenter, image, how)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "predict_probabilities", small_only)
    assert tool(f"checkpoint={own_network}", "input=in", "output=out", "write=[probabilities]") == 2
    err = capsys.readouterr().err
    assert "'in/large.png', 60 x 60 pixels x 7 classes in float16: 5.04e-05 GB, got 1e-05 GB free" in err
    assert files(Path("out")) == {"probabilities/small.npy", "contact_sheet.jpg"}


def test_too_little_memory_leaves_no_half_of_a_file(
    own_network: Path, tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(Path("a.png"))

    def broken(segmenter: object, image: Tensor, how: Inference) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(1, 56, dtype=torch.uint8), torch.ones(7, 1, 56) / 7
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predict, "predict_probabilities", broken)
    assert tool(f"checkpoint={own_network}", "input=a.png", "output=o", "write=[probabilities,overlays]") == 2
    assert files(Path("o")) == {"legend.png"}


def test_entropy_is_0_if_one_class_is_certain_and_1_if_all_are_alike() -> None:
    certain, alike = torch.eye(4)[:, :1], torch.full((4, 1), 0.25)
    half = torch.tensor([[0.5], [0.5], [0], [0]])
    assert normalised_entropy(torch.cat([certain, half, alike], 1)).tolist() == [0, 0.5, 1]
    assert normalised_entropy(torch.ones(1, 3)).tolist() == [0, 0, 0], "of a single class"


def test_entropy_is_shown_over_the_picture(tool: Callable[..., int], tmp_path: Path) -> None:
    """A network that knows nothing is yellow, and one that is sure is violet, over grey."""
    image = save_picture(tmp_path / "a.png", 32, 32)
    grey = read(image).astype(float) @ [0.299, 0.587, 0.114]
    for factor, colour in ((0.0, YELLOW), (1e4, VIOLET)):
        path = make_checkpoint(tmp_path / f"{factor}.safetensors", 7, scale=factor)
        assert tool(f"checkpoint={path}", f"input={image}", "output=o", "write=[entropy]") == 0
        assert files(Path("o")) == {"entropy/a.jpg", "contact_sheet.jpg"}
        shown = read(Path("o/entropy/a.jpg")).astype(float)
        expected = 0.3 * grey[..., None] + 0.7 * np.array(colour)
        assert np.median(np.abs(shown - expected)) < 6


@pytest.mark.parametrize(("kinds", "width"), [("overlays,entropy", 900), ("probabilities", 600)])
def test_a_folder_has_one_sheet_of_a_bounded_number_of_pictures(
    kinds: str, width: int, own_network: Path, tool: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        save_picture(Path(f"in/{number:02}.png"), 8, 12)
    Path("in/00.png").write_text("no picture")
    drawn = []
    draw = prediction_files.draw_tiles

    def note(tiles: list[tuple[np.ndarray, str]], *rest: object, **more: int) -> object:
        drawn.extend(tiles)
        return draw(tiles, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction_files, "draw_tiles", note)
    words = ("output=o", f"write=[{kinds}]")
    assert tool(f"checkpoint={own_network}", "input=in", *words) == 2
    assert [name for _, name in drawn] == [f"{number:02}" for number in range(3, 60, 3)], (
        "not what cannot be read"
    )
    assert {tile.shape for tile, _ in drawn} == {(200, width, 3)}, "picture, labels, and entropy if asked for"
    assert np.array_equal(
        drawn[0][0][:, :300], np.kron(read(Path("in/03.png")), np.ones((25, 25, 1), np.uint8))
    )
    assert read(Path("o/contact_sheet.jpg")).shape[1] == 1600

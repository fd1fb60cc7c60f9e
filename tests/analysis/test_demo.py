"""What the page of `isaseg demo` computes, without Gradio and without a browser."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from isaseg.analysis.demo import attention_png, examples, look
from isaseg.checkpoints.loading import load_model
from isaseg.data.decode import read_image
from isaseg.inference.label_files import LabelFormat, label_format
from isaseg.models.segmenter import Segmenter, build_described
from tests.inference.tiny import make_checkpoint, save_picture


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, LabelFormat]:
    classes = [f"thing {i}" for i in range(7)]
    path = make_checkpoint(tmp_path_factory.mktemp("model") / "m.safetensors", 7, classes=classes)
    model = load_model(path)
    return model.segmenter, label_format(model.description)


def test_a_small_picture_is_seen_as_it_is_and_shown_enlarged(
    network: tuple[Segmenter, LabelFormat], tmp_path: Path
) -> None:
    segmenter, form = network
    image = read_image(save_picture(tmp_path / "a.png", 40, 56))
    found = look(segmenter, form, image, 1024)
    assert found.zoom == 10 and found.size == (40, 56) and np.array_equal(found.picture, image)
    assert found.labels.shape == found.confidence.shape == found.shown.shape == (400, 560, 3)
    with torch.no_grad():
        probabilities = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None])[0].softmax(0)
    labels = probabilities.argmax(0).numpy()
    shares = {i: float((labels == i).mean()) for i in np.unique(labels)}
    assert dict(found.shares) == pytest.approx(shares)
    assert [s for _, s in found.shares] == sorted(shares.values(), reverse=True)
    middle = (slice(5, None, 10), slice(5, None, 10))  # borders are lighter
    blend = (image.astype(int) + form.colours[labels]) / 2
    assert np.abs(found.labels[middle] - blend).max() <= 1
    grey = image @ np.array([0.299, 0.587, 0.114])
    viridis = matplotlib.colormaps["viridis"](probabilities.amax(0).numpy())[..., :3] * 255
    assert np.abs(found.confidence[middle] - (0.3 * grey[..., None] + 0.7 * viridis)).max() <= 3


@pytest.mark.parametrize(("size", "seen"), [((30, 900), (10, 300)), ((900, 30), (300, 10)), ((1, 1), (1, 1))])
def test_a_large_picture_is_reduced(
    size: tuple[int, int], seen: tuple[int, int], network: tuple[Segmenter, LabelFormat], tmp_path: Path
) -> None:
    found = look(*network, read_image(save_picture(tmp_path / "a.png", *size)), 300)
    assert (found.size, found.picture.shape) == (size, (*seen, 3))
    assert max(found.labels.shape) <= 600


def test_the_attention_of_another_pixel_is_another_picture(
    network: tuple[Segmenter, LabelFormat], tmp_path: Path
) -> None:
    image = read_image(save_picture(tmp_path / "a.png", 40, 56))
    first, same, other = (
        attention_png(network[0], image, pixel, "ISA") for pixel in ((3, 4), (3, 4), (30, 50))
    )
    assert first.startswith(b"\x89PNG") and first == same != other


def test_a_context_module_without_maps_says_so(tmp_path: Path) -> None:
    description = load_model(make_checkpoint(tmp_path / "m.safetensors", 3)).description
    segmenter = build_described({**description, "attention": {"name": "NoContext"}}).eval()
    with pytest.raises(ValueError, match="expected a context module made of attention blocks, got NoContext"):
        attention_png(segmenter, np.zeros((16, 16, 3), np.uint8), (0, 0), "none")


def test_embedded_data_sets_have_scenes() -> None:
    lamps, cards = examples("lamps"), examples("cards")
    assert {x.shape for x in (*lamps, *cards)} == {(128, 128, 3)} and len(lamps) == 6
    assert not np.array_equal(lamps[0], cards[0])
    assert examples("cityscapes") == examples(None) == []

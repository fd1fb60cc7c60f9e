"""What networks answer on Cards, held against answers that are known."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import cards
from torch import Tensor, nn

from isaseg.data.sets.cards import CARD_HALF, Cards
from isaseg.errors import DataError
from tests.inference.tiny import make_checkpoint
from tests.report.fake_runs import write_run

SMALL = ("experiment=cards_isa", "data.val_length=40")


@pytest.fixture(scope="module")
def scenes() -> list[cards.Scene]:
    return cards.read_scenes(Cards("val", val_length=40))


class Told(nn.Module):
    """Gives every pixel of a scene one class, in the order of the scenes."""

    def __init__(self, labels: list[np.ndarray]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 8, H, W)."""
        told = [self.labels.pop(0) for _ in images]
        return nn.functional.one_hot(torch.from_numpy(np.stack(told)).long(), 8).permute(0, 3, 1, 2).float()


def test_frames_are_those_that_are_drawn() -> None:
    source = Cards("val", val_length=20)
    for index in range(len(source)):
        image, mask, _ = source.load(index)
        cue, frames = source.cues(index), source.frames(index)
        for number, frame in frames.items():
            y, x = (line[0] + 1 for line in ((cue == number) & (mask == 7)).nonzero())  # its top left corner
            edge = image[y, x : x + 2 * CARD_HALF - 2].mean()
            assert frame == (0 if edge > 190 else 1 if edge < 60 else 2)
        objects = (mask > 0) & (mask < 7)
        assert {frames[k] for k in np.unique(cue[objects])} == {
            (c - 1) // 2 for c in np.unique(mask[objects])
        }


def test_who_looks_up_and_who_counts_are_told_apart(scenes: list[cards.Scene]) -> None:
    own, frequent, neither = [], [], []
    for scene in scenes:
        labels = np.zeros(scene.objects.shape, np.uint8)
        labels[scene.objects] = 1 + 2 * scene.own
        own.append(labels)
        most = int(scene.cards.argmax())
        frequent.append(np.full_like(labels, 2 + 2 * most))
        neither.append(np.full_like(labels, 0))
    assert cards.answers(Told(own), scenes) == (1, 1, 0)
    counts = cards.answers(Told(frequent), scenes)
    assert counts[1:] == (0, 1)
    assert 0.4 < counts.right < 0.8
    assert cards.answers(Told(neither), scenes) == (0, 0, 0)


def test_counting_is_right_as_often_as_the_frames_say(scenes: list[cards.Scene]) -> None:
    image, objects = scenes[0][:2]
    clear = cards.Scene(image, objects, np.array([0, 0, 1]), np.array([2, 1, 0]))
    draw = cards.Scene(image, objects, np.array([1]), np.array([1, 1, 1]))
    assert cards.counting([clear]) == pytest.approx(2 / 3)
    assert cards.counting([clear, draw]) == pytest.approx((2 + 1 / 3) / 4)


def test_the_command_writes_a_line_for_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        run = write_run(tmp_path / f"run{seed}", *SMALL, seed=seed)
        make_checkpoint(run / "checkpoints" / "last.ckpt", 8)
    write_run(tmp_path / "unfinished", *SMALL, seed=2, finished=False)
    cards.benchmark(Namespace(runs=[tmp_path], folder=tmp_path / "out"))
    content = json.loads((tmp_path / "out" / "cards.json").read_text())
    assert [row["seed"] for row in content["rows"]] == [0, 1]
    assert content["counting"] == [cards.counting(cards.read_scenes(Cards("val", val_length=40)))]
    text = (tmp_path / "out" / "cards.md").read_text()
    assert text in capsys.readouterr().out
    shares = [
        [row["right"], row["own"], row["frequent"], 1 - row["own"] - row["frequent"]]
        for row in content["rows"]
    ]
    cells = [f"{100 * first:.1f} {100 * second:.1f}" for first, second in zip(*shares, strict=True)]
    assert f"\n| isa-8x8 | 0 1 | {' | '.join(cells)} |\n" in text


def test_runs_on_other_data_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "lamps")
    with pytest.raises(DataError, match="expected finished runs of data=cards"):
        cards.benchmark(Namespace(runs=[tmp_path], folder=tmp_path))

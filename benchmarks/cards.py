"""`cards`: whether a network on Cards answers with the card of the object's own hue, or with the most frequent frame.

Who hears all cards, and not whose they are, can do no better than count them. So this separates a module that does not
reach the cards from one that reaches them and has not learned the look-up.
"""

from argparse import Namespace
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.harness import write
from isaseg import config, load_segmenter
from isaseg.console import counted
from isaseg.data.sets.cards import CARD, FRAMES, Cards
from isaseg.errors import DataError
from isaseg.models.segmenter import Segmenter
from isaseg.report.rows import compare
from isaseg.report.runs import Run, read_runs

_BATCH = 32
_HEAD = ("row", "seeds", "right %", "own frame %", "most frequent frame %", "another %")


class Scene(NamedTuple):
    """What a scene shows, and what is right.

    Attributes:
        image: RGB uint8 (H, W, 3).
        objects: The pixels of objects, bool (H, W); P of them.
        own: The frame of the card of the pixel's own hue, (P,).
        cards: How many cards have each of the F frames, (F,); decoys count.
    """

    image: np.ndarray
    objects: np.ndarray
    own: np.ndarray
    cards: np.ndarray


class Answers(NamedTuple):
    """Shares of the object pixels.

    Attributes:
        right: Of all object pixels, those that get their own frame.
        own: Of those whose own frame is not among the most frequent of the scene: what gets its own frame.
        frequent: Of the same: what gets a most frequent frame.
    """

    right: float
    own: float
    frequent: float


def benchmark(options: Namespace) -> None:
    """Print and write what the finished runs on Cards answer on their validation scenes, at the last step.

    Raises:
        DataError: If there is no such run.
    """
    rows = compare(read_runs(options.runs), "val/mIoU", "last").rows
    runs = [(row.label, run) for row in rows for run in row.runs if _on_cards(run)]
    if not runs:
        raise DataError("expected finished runs of data=cards, got none; train with experiment=cards_isa")
    known: dict[str, list[Scene]] = {}  # all runs of a sweep have the same
    found = []
    with counted("reading answers", len(runs)) as advance:
        for label, run in runs:
            assert run.config is not None
            data = run.config.data
            key = config.digest(OmegaConf.to_container(data.source))
            scenes = known[key] = known.get(key) or read_scenes(config.build(data, "data").source("val"))
            network = load_segmenter(run.folder / "checkpoints" / "last.ckpt")
            found.append((label, run.seed, answers(network, scenes)))
            advance()
    _publish(found, [counting(scenes) for scenes in known.values()], options)


def _on_cards(run: Run) -> bool:
    return run.state == "finished" and run.config is not None and run.config.data.name == "cards"


def read_scenes(source: Cards) -> list[Scene]:
    """Return the scenes of a split."""
    scenes = []
    for index in range(len(source)):
        image, mask = map(np.asarray, source.load(index)[:2])
        objects = (mask >= 1) & (mask < CARD)
        cards = np.bincount(list(source.frames(index).values()), minlength=len(FRAMES))
        scenes.append(Scene(image, objects, frame_of(mask[objects]), cards))
    return scenes


def frame_of(labels: np.ndarray) -> np.ndarray:
    """Return the frame that a class of an object stands for; another class stands for none of them."""
    return (labels.astype(int) - 1) // 2


def counting(scenes: Sequence[Scene]) -> float:
    """Return the share of object pixels that is right if the most frequent frame is answered, any of them in a draw."""
    most = [scene.cards == scene.cards.max() for scene in scenes]
    right = sum((m / m.sum())[scene.own].sum() for m, scene in zip(most, scenes, strict=True))
    return float(right / sum(len(scene.own) for scene in scenes))


@torch.inference_mode()
def answers(network: Segmenter, scenes: Sequence[Scene]) -> Answers:
    """Return what a network answers on scenes."""
    right, own, frequent, pixels, asked = 0, 0, 0, 0, 0
    for first in range(0, len(scenes), _BATCH):
        batch = scenes[first : first + _BATCH]
        images = torch.from_numpy(np.stack([scene.image for scene in batch])).permute(0, 3, 1, 2)
        for scene, labels in zip(batch, network(images).argmax(1).numpy(), strict=True):
            answered = frame_of(labels[scene.objects])
            rare = scene.cards[scene.own] < scene.cards.max()
            right += (answered == scene.own).sum()
            own += (answered == scene.own)[rare].sum()
            frequent += np.isin(answered[rare], np.flatnonzero(scene.cards == scene.cards.max())).sum()
            pixels += len(answered)
            asked += rare.sum()
    return Answers(right / pixels, own / asked, frequent / asked)


def _publish(found: list[tuple[str, int, Answers]], counted_right: list[float], options: Namespace) -> None:
    lines = []
    for row, members in groupby(found, key=lambda run: run[0]):
        runs = [(seed, (*shares, 1 - shares.own - shares.frequent)) for _, seed, shares in members]
        cells = (" ".join(f"{100 * shares[column]:.1f}" for _, shares in runs) for column in range(4))
        lines.append((row, " ".join(str(seed) for seed, _ in runs), *cells))
    marks = ("---", *["---:"] * (len(_HEAD) - 1))
    table = "".join(f"| {' | '.join(line)} |\n" for line in (_HEAD, marks, *lines))
    share_counted = ", ".join(f"{100 * share:.1f} %" for share in counted_right)
    text = (
        f"# What networks answer on Cards\n\n{table}\n"
        "A cell has a number for each seed. The last three columns are of the object pixels whose own frame is not among "
        f"the most frequent of the cards in the scene. Answering the most frequent is right for {share_counted} of all "
        "object pixels.\n"
    )
    rows = [{"row": label, "seed": seed, **shares._asdict()} for label, seed, shares in found]
    write(options.folder, "cards", text, {"rows": rows, "counting": counted_right})
    print(f"{text}\nwritten: {options.folder / 'cards'}.json, cards.md")

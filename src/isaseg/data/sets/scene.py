"""Drawing that the generated data sets share: background, shapes, placement, sensor noise, outlines.

A `Canvas` is a picture with two maps of the same size: train ids and instances. All randomness comes from the generator
that is passed in.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

SIZE = 128
IGNORE = 255
# Shape: radius of its circumscribed circle, in units of the object's radius; this makes the areas more alike.
SHAPES = {"disc": 1.0, "triangle": 1.3, "square": 1.2}
STRIPE_PERIOD = 6
FAR = 40  # pixels; more than what the stride-4 features see without context
SPLITS = {"train": 0, "val": 1, "test": 2}

# Six hues around the circle, as RGB.
HUES = np.array(
    [(215, 55, 50), (215, 190, 45), (65, 185, 60), (50, 185, 195), (60, 85, 215), (190, 65, 195)], np.float32
)


@dataclass
class Canvas:
    """A scene being drawn: RGB uint8 (S, S, 3), train ids and instance numbers uint8 (S, S)."""

    image: np.ndarray
    mask: np.ndarray = field(default_factory=lambda: np.zeros((SIZE, SIZE), np.uint8))
    instance: np.ndarray = field(default_factory=lambda: np.zeros((SIZE, SIZE), np.uint8))
    count: int = 0


@dataclass(frozen=True)
class Thing:
    """An object: shape, radius of its circumscribed circle, hue, whether it is striped."""

    shape: str
    radius: int
    hue: int
    striped: bool


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of one scene; the splits draw from different streams."""
    return np.random.default_rng((seed, SPLITS[split], index))


def background(rng: np.random.Generator) -> Canvas:
    """Return a smooth greyish ground with two to five grey strokes."""
    grey = rng.uniform(60, 190, (6, 6, 1)) + rng.uniform(-14, 14, (6, 6, 3))
    image = cv2.resize(grey.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image, 20, 235).astype(np.uint8)
    for ends in rng.integers(0, SIZE, (int(rng.integers(2, 6)), 4)).tolist():
        level = int(rng.integers(40, 216))
        cv2.line(image, ends[:2], ends[2:], (level, level, level), int(rng.integers(1, 4)), cv2.LINE_AA)
    return Canvas(image)


def place(rng: np.random.Generator, radii: list[int]) -> list[tuple[int, int] | None]:
    """Return a centre (x, y) for each radius so that no two circles touch; None where 60 tries found no room."""
    taken: list[tuple[int, int, int]] = []
    centres: list[tuple[int, int] | None] = []
    for radius in radii:
        drawn = rng.integers(radius + 2, SIZE - radius - 2, (60, 2)).tolist()
        free = (
            (x, y)
            for x, y in drawn
            if all((x - u) ** 2 + (y - v) ** 2 > (radius + r + 3) ** 2 for u, v, r in taken)
        )
        centre = next(free, None)
        centres.append(centre)
        if centre is not None:
            taken.append((*centre, radius))
    return centres


def things(rng: np.random.Generator) -> list[Thing]:
    """Return four to seven objects of random shape, size, hue and texture, the largest first."""
    draws = rng.integers((0, 9, 0, 0), (len(SHAPES), 17, len(HUES), 2), (int(rng.integers(4, 8)), 4)).tolist()
    names = list(SHAPES)
    found = [
        Thing(names[shape], round(radius * SHAPES[names[shape]]), hue, bool(striped))
        for shape, radius, hue, striped in draws
    ]
    return sorted(found, key=lambda thing: -thing.radius)


def draw_thing(
    canvas: Canvas, at: tuple[int, int], thing: Thing, label: int, rng: np.random.Generator
) -> None:
    """Draw an object, plain or with stripes of any direction, and label its pixels."""
    radius, angle, phase = thing.radius, rng.uniform(0, 2 * np.pi), rng.uniform(0, STRIPE_PERIOD)
    inside = _shape(thing.shape, radius, angle)
    brightness, direction = rng.uniform(0.8, 1.1), rng.uniform(0, np.pi)
    colour = HUES[thing.hue] * brightness
    patch = np.full((*inside.shape, 3), colour, np.uint8)
    if thing.striped:
        span = np.arange(-radius, radius + 1)
        along = span * np.cos(direction) + span[:, None] * np.sin(direction) + phase
        patch[along % STRIPE_PERIOD < STRIPE_PERIOD / 2] = colour * 0.4
    _stamp(canvas, at, inside, patch, label)


def draw_disc(
    canvas: Canvas, at: tuple[int, int], radius: int, colour: tuple[int, int, int], label: int
) -> None:
    """Draw a disc with a white rim of two pixels; label 0 leaves it part of the background."""
    inside = _shape("disc", radius, 0)
    patch = np.full((*inside.shape, 3), 250, np.uint8)
    cv2.circle(patch, (radius, radius), radius - 2, colour, -1)
    _stamp(canvas, at, inside, patch, label)


def draw_card(canvas: Canvas, at: tuple[int, int], hue: int, frame: np.ndarray, label: int) -> None:
    """Draw an upright square card of a hue; `frame` (side, side) holds grey levels, -1 inside."""
    patch = np.where(frame[..., None] < 0, HUES[hue], frame[..., None].astype(np.float32))
    _stamp(canvas, at, np.ones(frame.shape, bool), patch, label)


def finish(canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return image with sensor noise of sigma 3 to 9, and train ids with outlines ignored.

    An outline is one pixel to each side of the border of an instance.
    """
    noise = rng.standard_normal(canvas.image.shape, dtype=np.float32)
    noise *= rng.uniform(3, 9)
    image = cv2.add(canvas.image, noise, dtype=cv2.CV_8U)
    outline = cv2.morphologyEx(canvas.instance, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    canvas.mask[outline] = IGNORE
    return image, canvas.mask


def beyond(x: int, y: int) -> np.ndarray:
    """Return which pixels, bool (S, S), are more than `FAR` pixels from (x, y)."""
    v, u = np.ogrid[:SIZE, :SIZE]
    far: np.ndarray = (u - x) ** 2 + (v - y) ** 2 > FAR**2
    return far


def _shape(shape: str, radius: int, angle: float) -> np.ndarray:
    inside = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
    if shape == "disc":
        cv2.circle(inside, (radius, radius), radius, 1, -1)
    else:
        corners = 3 if shape == "triangle" else 4
        turns = angle + np.arange(corners) * (2 * np.pi / corners)
        points = radius + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        cv2.fillConvexPoly(inside, points.round().astype(np.int32), 1)
    return inside.astype(bool)


def _stamp(canvas: Canvas, at: tuple[int, int], inside: np.ndarray, patch: np.ndarray, label: int) -> None:
    (x, y), half = at, inside.shape[0] // 2
    window = np.s_[y - half : y + half + 1, x - half : x + half + 1]
    canvas.image[window][inside] = patch[inside]
    canvas.mask[window][inside] = label
    if label:
        canvas.count += 1
        canvas.instance[window][inside] = canvas.count

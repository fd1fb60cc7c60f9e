"""Label pictures: files in, label files and overlays out, from a configuration to an exit code."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeInt, PositiveInt

from isaseg import config
from isaseg.checkpoints.loading import load_model
from isaseg.console import counted
from isaseg.data.resize import base_size
from isaseg.errors import ConfigError, DataError, is_out_of_memory
from isaseg.files import replace_file
from isaseg.inference.apply import Inference, check_applies, predict_labels
from isaseg.inference.label_files import LabelFormat, label_format
from isaseg.inference.photographs import Picture, find_pictures, pixels_at_most, read_picture
from isaseg.inference.prediction_files import PredictionFiles
from isaseg.inference.probabilities import check_room, collected, predict_probabilities
from isaseg.inference.protocol import inference_of
from isaseg.models.segmenter import Segmenter

Reader = Callable[[Picture], np.ndarray]
Labeller = Callable[[Picture, np.ndarray], tuple[np.ndarray, np.ndarray | None]]  # labels and entropy
Writer = Callable[[Picture, np.ndarray, np.ndarray, np.ndarray | None], None]
Output = Literal["labels", "overlays", "probabilities", "entropy"]

DEVICE = Annotated[
    str, Field(pattern=r"^(auto|cpu|cuda(:(0|[1-9]\d?))?)$", description="auto, cpu, cuda or cuda:NUMBER")
]
_KEYS: dict[str, Any] = {
    "write": Annotated[
        list[Output],
        Field(min_length=1, description=f"a list of some of {', '.join(get_args(Output))}, as [labels]"),
    ],
    "exif": Literal["apply", "ignore"],
    "device": DEVICE,
    "precision": Literal[32, "bf16"],
    "max_pixels": PositiveInt,
    "whole_pixels": NonNegativeInt,
    "test.mode": Literal["auto", "whole", "slide"],
}


def predict_pictures(cfg: DictConfig, files: Sequence[str] = ()) -> int:
    """Label all pictures; return 0, or 2 if some could not be read, each reported on stderr.

    Args:
        cfg: Of conf/predict.yaml.
        files: Pictures and folders instead of those of `input`.

    Raises:
        ConfigError: For a value that cannot work.
        DataError: If there are no pictures, or two would have the same output.
        CheckpointError: If the checkpoint does not load.
        OSError: If an output cannot be written; names the file.
    """
    check_prediction(cfg)
    device, folder = chosen_device(cfg.device), Path(str(cfg.output))
    pictures = find_pictures(_inputs(cfg, files), folder)
    model = load_model(Path(str(cfg.checkpoint)))
    form = label_format(model.description, OmegaConf.select(cfg, "data.name"))
    check_applies(model.segmenter, windowed(cfg))
    folder.mkdir(parents=True, exist_ok=True)
    outputs = PredictionFiles(folder, form, list(cfg.write), pictures)
    with pixels_at_most(cfg.max_pixels):
        labeller = _labeller(model.segmenter.fuse().to(device), cfg, form, folder)
        start = time.perf_counter()
        read = partial(read_picture, turned=cfg.exif == "apply")
        faults = _label_all(pictures, read, labeller, outputs.write)
        done, seconds = len(pictures) - faults, time.perf_counter() - start
    holds = outputs.finish()
    print(f"{done} of {len(pictures)} pictures, {done / seconds:.3g} a second. In '{folder}': {holds}")
    return 2 if faults else 0


def windowed(cfg: DictConfig, flip_pairs: Sequence[tuple[int, int]] = ()) -> Inference:
    """Return how the network is applied to a picture that is cut into windows.

    Raises:
        ConfigError: Naming the wrong key of `test`.
    """
    slide = OmegaConf.merge(cfg, {"test": {"mode": "slide"}})
    assert isinstance(slide, DictConfig)
    return inference_of(slide, flip_pairs)


def for_picture(windows: Inference, mode: str, whole_pixels: int, size: tuple[int, int]) -> Inference:
    """Return `windows`, or the same for the whole picture at once.

    Args:
        windows: What `windowed` returns.
        mode: slide, whole, or auto: slide if the picture, resized, has more than `whole_pixels`.
        whole_pixels: Most pixels of a picture that goes through the network whole.
        size: (H, W) of the picture.
    """
    is_large = math.prod(base_size(*size, windows.resize)) > whole_pixels
    return windows if mode == "slide" or (mode == "auto" and is_large) else replace(windows, crop_size=None)


def _label_all(pictures: Sequence[Picture], read: Reader, labeller: Labeller, write: Writer) -> int:
    """Read, label and write each picture; return how many could not be.

    While the network works on one picture, the next is decoded and the previous is written; memory holds no more.
    """
    faults = 0
    with ThreadPoolExecutor(2) as pool, counted("predict", len(pictures), "images") as advance:
        upcoming = pool.submit(read, pictures[0])
        writing: Future[None] | None = None
        for number, picture in enumerate(pictures, start=1):
            reading = upcoming
            reading.exception()  # waits, so that no two are decoded at once
            if number < len(pictures):
                upcoming = pool.submit(read, pictures[number])
            try:
                image = reading.result()
                labels, entropy = labeller(picture, image)
            except (DataError, MemoryError, RuntimeError) as error:
                if not isinstance(error, DataError) and not is_out_of_memory(error):
                    raise
                faults += 1
                what = error if isinstance(error, DataError) else _out_of_memory(picture)
                print(f"error: {what}", file=sys.stderr)
            else:
                if writing is not None:
                    writing.result()
                writing = pool.submit(write, picture, image, labels, entropy)
            advance()
        if writing is not None:
            writing.result()
    return faults


def _labeller(segmenter: Segmenter, cfg: DictConfig, form: LabelFormat, folder: Path) -> Labeller:
    """Return the function that labels a picture and, if requested, writes its probabilities strip by strip."""
    device = next(segmenter.parameters()).device
    windows, half = windowed(cfg, form.flip_pairs), cfg.precision == "bf16"

    def label(picture: Picture, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        size = image.shape[0], image.shape[1]
        how = for_picture(windows, cfg.test.mode, cfg.whole_pixels, size)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]  # windows go to the device one by one
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            if "probabilities" in cfg.write:
                check_room(folder, str(picture.path), (*size, len(form.classes)))
                with replace_file(folder / "probabilities" / f"{picture.name}.npy") as file:
                    return collected(predict_probabilities(segmenter, pixels, how), size, file)
            if "entropy" in cfg.write:
                return collected(predict_probabilities(segmenter, pixels, how), size)
            return predict_labels(segmenter, pixels, how)[0].cpu().numpy(), None

    return label


# ---------------------------------------------------------------- what the configuration asks for


def check_prediction(cfg: DictConfig) -> None:
    """Check everything that does not depend on the pictures.

    Raises:
        ConfigError: Naming the key, its value and what was expected.
    """
    for key in ("checkpoint", "output"):
        config.require(cfg, key)
    for key, annotation in _KEYS.items():
        value = OmegaConf.select(cfg, key)
        config.check_value(key, list(value) if OmegaConf.is_list(value) else value, annotation)
    protocol, of = OmegaConf.select(cfg, "recipe.protocol"), OmegaConf.select(cfg, "recipe.of")
    data = OmegaConf.select(cfg, "data.name")
    if protocol is not None and of != f"{data}_{protocol}":
        raise ConfigError(f"no values of protocol={protocol} are known for data={data}; give both or neither")
    windowed(cfg)


def _inputs(cfg: DictConfig, files: Sequence[str]) -> list[str]:
    given = OmegaConf.to_container(cfg.input) if OmegaConf.is_list(cfg.input) else cfg.input
    if files and given is not None:
        raise ConfigError(
            f"expected pictures either as input=... or after --, got input={given} and {files[0]!r}"
        )
    if given is None:
        return list(files)
    return [str(word) for word in (given if isinstance(given, list) else [given])]


def chosen_device(name: str) -> torch.device:
    """Return the device of a name that fits `DEVICE`; auto is a GPU if there is one.

    Raises:
        ConfigError: If it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"expected a device that is there, got device={name} and {torch.cuda.device_count()} GPUs; use device=auto"
        )
    return device


def _out_of_memory(picture: Picture) -> str:
    return (
        f"expected to predict {str(picture.path)!r} in the memory of the device, got too little; give "
        "test.mode=slide test.crop_size=[512,512], precision=bf16, or device=cpu"
    )

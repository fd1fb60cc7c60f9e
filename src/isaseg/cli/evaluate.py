"""Score a trained network on a labelled split.

usage: isaseg evaluate checkpoint=FILE [data=NAME] [data.root=/path/to/it] [KEY=VALUE ...]

Computes IoU, accuracy and Boundary IoU of each class, their means, the pixel accuracy and the mean mIoU of an image.
Writes metrics.json, confusion.png and the worst images into a folder below <output_dir>/evaluate.

  checkpoint=FILE       from training, mmsegmentation or openseg; or a folder of export, or USER/NAME on the hub
  data=cityscapes       the data set; default: that of the run whose folder has the checkpoint, with its root and all its
                        keys, else the one that the checkpoint names
  data.root=DIR         another root
  protocol=mmseg        how it is tested, an option of conf/protocol; default: the one of the checkpoint
  split=val             or test, train
  test.tta=true         several scales and their mirror images, as the published "ms+flip"
  test.mode=slide       in windows: test.crop_size=[769,769] test.stride=[513,513]
  trainer.devices=2     with trainer=ddp on several GPUs; the scores are the same
  trainer.precision=bf16-mixed
  data.val_length=100   only this many images
  worst=6               draw this many of the worst images
  against=FILE          another checkpoint, applied in the same way: draws where this one is better and where worse
  +trust=[mylab]        where the network or the data have parts of your own package
  --config-dir DIR      a folder of your own with more data sets
  output=DIR            instead of a folder below <output_dir>/evaluate

Examples:
  isaseg evaluate checkpoint=outputs/lamps_isa/RUN/checkpoints/best.ckpt
  isaseg evaluate checkpoint=outputs/lamps_isa/RUN/checkpoints/best.ckpt against=other.ckpt
  isaseg evaluate checkpoint=isanet_r101-d8_512x1024_80k_cityscapes.pth data=cityscapes data.root=/data/cityscapes

Keys: conf/evaluate.yaml, conf/data
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from isaseg import config
from isaseg.cli import command
from isaseg.cli.run_data import is_of_data, run_data, run_file
from isaseg.errors import ConfigError

if TYPE_CHECKING:
    from isaseg.checkpoints.loading import Model


def main(words: Sequence[str] | None = None) -> int:
    """Evaluate; return the exit code, see `command.run`."""
    return command.main(__doc__, _work, words, "nothing is written")


def _work(words: list[str]) -> int:
    given = dict(word.partition("=")[::2] for word in words)
    # keys of a data set that only the checkpoint names are checked once it is read
    early = [word for word in words if "data" in given or not is_of_data(word)]
    path = Path(str(config.require(config.compose_from("evaluate", early), "checkpoint")))
    with command.fast_imports():  # torch: a typo is reported before that
        from isaseg.checkpoints.loading import load_model
        from isaseg.inference.evaluate import evaluate_model

    model = load_model(path)
    cfg = _configuration(words, given, model, path)
    evaluate_model(cfg, model, None if cfg.against is None else load_model(str(cfg.against)))
    return 0


def _configuration(words: list[str], given: Mapping[str, str], model: "Model", path: Path) -> DictConfig:
    """Return the configuration, with the data of the run that a checkpoint of ours is of, unless `data` is given."""
    file = run_file(path) if model.kind == "isaseg" and "data" not in given else None
    data = None
    if file is not None:
        data = run_data(file, [word for word in words if is_of_data(word)], model.description.get("data"))
        words = [word for word in words if not is_of_data(word)]
    implied = _implied(given, model, path, config.user_dirs(words), has_data=data is not None)
    more = [f"{key}={value}" for key, value in implied.items() if key not in given]
    cfg = config.compose_from("evaluate", [*words, *more])
    if data is not None:
        if "protocol" in given:  # which says how the images are resized
            data.val_resize = cfg.data.val_resize
        cfg.data = data
    return cfg


def _implied(
    given: Mapping[str, str], model: "Model", path: Path, own: Sequence[Path] = (), has_data: bool = False
) -> dict[str, str]:
    """Return what a checkpoint implies: data set, protocol, the classes of a user's own folder.

    With `has_data`, of the run, the option of the data set may be absent.
    """
    description = model.description
    data = given.get("data") or description.get("data")
    if data is None:
        raise ConfigError(f"expected data=NAME, since '{path}' does not say which data set it was trained on")
    protocols = [description.get("protocol", "none")]
    if protocols == ["mmseg"] and description["head"]["align_corners"]:
        protocols.insert(0, "mmseg_769")  # the only ISANets of mmsegmentation that align corners
    folders = (config.conf_dir(), *own)
    is_option = any((folder / "data" / f"{data}.yaml").is_file() for folder in folders)
    if has_data and not is_option:
        return {}
    if "data" not in given and "hydra.searchpath" not in given and not is_option:
        raise ConfigError(
            f"expected data=NAME, the option with the data set '{data}' of '{path}', since no option is called {data}; "
            "give --config-dir=DIR too if it is in a folder of your own"
        )
    known = (p for p in protocols if any((f / "recipe" / f"{data}_{p}.yaml").is_file() for f in folders))
    implied = {"data": data, "protocol": next(known, "none")}
    classes = description.get("classes")
    # OmegaConf would interpolate a name with $, and Hydra reads no escapes of letters
    if data == "folder" and not has_data and classes and not any("$" in name for name in classes):
        implied["data.classes"] = json.dumps(list(classes), ensure_ascii=False)
    return implied

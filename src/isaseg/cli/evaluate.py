"""Score a trained network: `python src/evaluate.py checkpoint=FILE data=cityscapes data.root=/path/to/it`."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from isaseg import config
from isaseg.cli import command
from isaseg.cli.importing import uncollected
from isaseg.errors import ConfigError

if TYPE_CHECKING:
    from isaseg.checkpoints.loading import Model

SCRIPT = "src/evaluate.py"
_HELP = """\
usage: python src/evaluate.py checkpoint=FILE [data=NAME] [data.root=/path/to/it] [KEY=VALUE ...]

Score a network on a labelled split: IoU and accuracy of each class, mIoU, mAcc and aAcc. Writes metrics.json,
confusion.png and the worst images into a folder below <output_dir>/evaluate.

  checkpoint=FILE       of src/train.py or src/export.py, of mmsegmentation or of openseg
  data=cityscapes       the data set; what the checkpoint was trained on unless given
  protocol=mmseg        how it is tested: mmseg, mmseg_769, openseg or none; that of the checkpoint unless given
  split=val             or test, train
  test.tta=true         several scales and their mirror images, as the published "ms+flip"
  test.mode=slide       in windows: test.crop_size=[769,769] test.stride=[513,513]
  trainer.devices=2     with trainer=ddp on several GPUs; the figures are the same
  trainer.precision=bf16-mixed
  data.val_length=100   only so many images
  worst=6               so many of the worst images are drawn
  output=DIR            instead of a folder below <output_dir>/evaluate

examples:
  python src/evaluate.py checkpoint=outputs/lamps_isa/RUN/checkpoints/best.ckpt
  python src/evaluate.py checkpoint=isanet_r101-d8_512x1024_80k_cityscapes.pth data=cityscapes data.root=/data/cityscapes
keys: conf/evaluate.yaml, conf/data
"""


def main(arguments: Sequence[str]) -> int:
    """Evaluate; return the exit code: 0 done, 2 bad input, others as in `command.run`."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return 0 if arguments else 2
    return command.run(partial(_work, arguments), "evaluate", SCRIPT, "nothing is written")


def _work(arguments: Sequence[str]) -> int:
    given = dict(word.partition("=")[::2] for word in arguments)
    # the keys of a data set that only the checkpoint names can be checked when it is read
    early = [word for word in arguments if "data" in given or not word.startswith("data.")]
    path = Path(str(config.require(config.compose_from("evaluate", early, SCRIPT), "checkpoint")))
    with uncollected():  # imports torch: seconds that a typo need not wait for
        from isaseg.checkpoints.loading import load_model
        from isaseg.inference.evaluate import evaluate

    model = load_model(path)
    following = _following(given, model, path)
    words = [*arguments, *(f"{key}={value}" for key, value in following.items() if key not in given)]
    evaluate(config.compose_from("evaluate", words, SCRIPT), model)
    return 0


def _following(given: Mapping[str, str], model: "Model", path: Path) -> dict[str, str]:
    """Return what follows from a checkpoint unless given: data set, protocol, classes of a user's own folder."""
    description = model.description
    data = given.get("data") or description.get("data")
    if data is None:
        raise ConfigError(
            f"expected data=NAME, since '{path}' does not tell which data set it was trained on"
        )
    protocols = [description.get("protocol", "none")]
    if model.kind == "mmseg" and description["head"]["align_corners"]:
        protocols.insert(0, "mmseg_769")  # the only ISANets of mmsegmentation that align corners
    recipes = config.conf_dir() / "recipe"
    known = (protocol for protocol in protocols if (recipes / f"{data}_{protocol}.yaml").is_file())
    following = {"data": data, "protocol": next(known, "none")}
    classes = description.get("classes")
    if data == "folder" and classes and not any("$" in name for name in classes):  # which would be resolved
        following["data.classes"] = json.dumps(list(classes))
    return following

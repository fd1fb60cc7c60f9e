"""Label images with a trained network.

usage: isaseg predict checkpoint=FILE input=FOLDER_OR_FILES output=DIR [KEY=VALUE ...] [-- FILE ...]

Writes into the folder `output`, under the names that the images have in the folder `input`:
  labels/NAME.png       the class of every pixel, in the data set's own ids: Cityscapes 0 to 33 (labelIds), ADE20K 1 to
                        150, PASCAL VOC 0 to 20 with its palette, ...; an index PNG of the image's size, upright
  overlays/NAME.jpg     the classes' colours over the image, at most 2048 pixels a side; and legend.png
  contact_sheet.jpg     up to 24 of the images beside their labels in colour
These replace files of an earlier run. An image that cannot be read is reported and skipped.

  checkpoint=FILE       from training, mmsegmentation or openseg; or a folder of export, or USER/NAME on the hub
  input=FOLDER          or a file, or several as input=[a.png,b.jpg]
  data=cityscapes       whose ids and colours are written; default: the data set of the checkpoint
  write=[labels]        labels and the sheet alone; of [labels,overlays,probabilities,entropy]: probabilities/NAME.npy has
                        those of every class, float16 (height, width, classes), after windows, scales and mirror images
                        are averaged; entropy/NAME.jpg shows their entropy, violet (certain) to yellow (all alike)
  exif=ignore           do not turn images upright by their EXIF flag; labels are then those of the stored pixels
  --config-dir DIR      a folder of your own with more data sets
  +trust=[mylab]        where the network has parts of your own package
  device=cuda:1         cpu, cuda or cuda:NUMBER; default: a GPU if there is one
  precision=bf16        half the memory, faster on a GPU
  max_pixels=900000000  refuse images larger than this
  test.mode=slide       in windows: test.crop_size=[769,769] test.stride=[513,513]; whole: at once; default: whole up
                        to whole_pixels=4194304, larger images in windows
  test.resize={short_side:512}
                        resize first: to the size of the images in training
  test.tta=true         the mean over test.scales=[0.75,1.0,1.25] and the mirror images
  protocol=mmseg        with data=NAME: resized and cut as published, the labels that `evaluate` scores

Examples:
  isaseg predict checkpoint=best.ckpt input=photos output=out
  isaseg predict checkpoint=isanet.pth data=cityscapes input=leftImg8bit/test output=out
  isaseg predict checkpoint=best.ckpt output=out -- *.jpg

A value with characters other than letters, digits, spaces and / . - _ : needs quotes inside quotes, such as
"input='a, (b) = c.png'"; after -- files may have any name.

Keys: conf/predict.yaml
"""

from collections.abc import Sequence

from isaseg import config
from isaseg.cli import command


def main(words: Sequence[str] | None = None) -> int:
    """Predict; return the exit code, see `command.run`: 2 also if images cannot be read."""
    return command.main(
        __doc__, _work, words, "every file that is there is whole; run the same command again for the rest"
    )


def _work(words: list[str]) -> int:
    at = words.index("--") if "--" in words else len(words)
    cfg = config.compose_from("predict", words[:at])
    with command.fast_imports():
        from isaseg.inference.predict import predict_pictures  # torch: a typo is reported before that
    return predict_pictures(cfg, words[at + 1 :])

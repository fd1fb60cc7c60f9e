"""Label pictures with a trained network: `python src/predict.py checkpoint=FILE input=FOLDER output=DIR`."""

from collections.abc import Sequence
from functools import partial

from isaseg import config
from isaseg.cli import command
from isaseg.cli.importing import uncollected

SCRIPT = "src/predict.py"
_HELP = """\
usage: python src/predict.py checkpoint=FILE input=FOLDER_OR_FILES output=DIR [KEY=VALUE ...] [-- FILE ...]

Label pictures. In the folder `output`, below the names that the pictures have in the folder `input`:
  labels/NAME.png       the class of every pixel, in the data set's own ids: Cityscapes 0 to 33 (labelIds), ADE20K 1 to
                        150, PASCAL VOC 0 to 20 with its palette, ...; an index PNG of the picture's size
  overlays/NAME.jpg     the classes' colours over the picture, at most 2048 pixels a side; and legend.png
What an earlier call left under these names is replaced. A picture that cannot be read is told, the others are done.

  checkpoint=FILE       of src/train.py or src/export.py, of mmsegmentation or of openseg
  input=FOLDER          or a file, or several as input=[a.png,b.jpg]
  data=cityscapes       whose ids and colours are written; of what the checkpoint was trained on unless given
  overlays=false        labels alone
  submission=true       also submission.zip, as Cityscapes' server takes it
  device=cuda:1         cpu, cuda or cuda:NUMBER; a GPU where there is one unless given
  precision=bf16        half the memory, faster on a GPU
  max_pixels=900000000  a larger picture is refused
  test.mode=slide       in windows: test.crop_size=[769,769] test.stride=[513,513]; whole: at once; unless given, whole
                        up to whole_pixels=4194304, above that in windows
  test.resize={short_side:512}
                        before: the size of the pictures in training
  test.tta=true         the mean over test.scales=[0.75,1.0,1.25] and the mirror images
  protocol=mmseg        with data=NAME: resized and cut as published, the labels that src/evaluate.py scores

examples:
  python src/predict.py checkpoint=best.ckpt input=photos output=out
  python src/predict.py checkpoint=isanet.pth data=cityscapes input=leftImg8bit/test output=out submission=true
  python src/predict.py checkpoint=best.ckpt output=out -- *.jpg
Put quotes inside quotes around a value with other characters than letters, digits, spaces and / . - _ : such as
"input='a, (b) = c.png'"; after -- files may have any name. EXIF orientation is not applied.
keys: conf/predict.yaml
"""


def main(arguments: Sequence[str]) -> int:
    """Predict; return the exit code: 0 done, 2 bad input or pictures that cannot be read, others as in `command.run`."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    words, files = words[:at], words[at + 1 :]
    if not arguments or {"-h", "--help"} & set(words):
        print(_HELP, end="")
        return 0 if arguments else 2
    left = "what is written is whole, give the same command again for the rest"
    return command.run(partial(_work, words, files), "predict", SCRIPT, left)


def _work(words: Sequence[str], files: Sequence[str]) -> int:
    cfg = config.compose_from("predict", words, SCRIPT)
    with uncollected():  # imports torch: seconds that a typo need not wait for
        from isaseg.inference.predict import predict

    return predict(cfg, files)

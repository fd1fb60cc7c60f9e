"""Write a trained network in other formats: `python src/export.py checkpoint=FILE output=DIR`."""

from collections.abc import Sequence
from functools import partial

from isaseg import config
from isaseg.cli import command
from isaseg.cli.importing import uncollected

SCRIPT = "src/export.py"

_HELP = """\
usage: python src/export.py checkpoint=FILE output=DIR [KEY=VALUE ...]

Write a network in other formats, each compared with PyTorch before it is written. In the folder `output`, under the
name of the checkpoint:
  NAME.safetensors    weights and description, without anything that could run; checkpoint= of every command takes it
  NAME.onnx           a graph for any number of images of any size; needs `pip install 'isaseg[onnx]'`
  NAME.pt2            a torch.export program for one image of one size

  checkpoint=FILE     of src/train.py, of mmsegmentation or of openseg
  formats=[onnx]      only these of safetensors, onnx, program
  size=[512,1024]     height and width of the image that the program takes
  group_size=[8,8]    and
  align_corners=true  for a published file that has lost its configuration

examples:
  python src/export.py checkpoint=outputs/lamps_isa/RUN/checkpoints/best.ckpt output=exported
  python src/export.py checkpoint=isanet_r50-d8_769x769.pth output=exported formats=[program] size=[769,769]
keys: conf/export.yaml

Each takes `image`, uint8 RGB (batch, 3, height, width), neither scaled nor normalised, and gives `logits`, float32
(batch, classes, height, width), of which the largest names the class:

  image = numpy.asarray(PIL.Image.open("a.jpg").convert("RGB")).transpose(2, 0, 1)[None]

  session = onnxruntime.InferenceSession("exported/best.onnx")
  labels = session.run(["logits"], {"image": image})[0].argmax(1)

  program = torch.export.load("exported/best.pt2").module()
  labels = program(torch.from_numpy(image.copy())).argmax(1)

  segmenter = isaseg.checkpoints.loading.load_segmenter("exported/best.safetensors")
  labels = segmenter(torch.from_numpy(image.copy())).argmax(1)

The class names, the palette and the description of the network are in each: ONNX metadata (`classes`, `palette`,
`isaseg`), the program's extra file `isaseg.json`, safetensors' metadata `isaseg`.
"""


def main(arguments: Sequence[str]) -> int:
    """Export; return the exit code: others as in `command.run`, 2 also of a network that a format cannot hold."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_HELP, end="")
        return 0 if arguments else 2
    left = "nothing is left half-written, give the same command again"
    return command.run(partial(_work, arguments), "export", SCRIPT, left)


def _work(arguments: Sequence[str]) -> int:
    cfg = config.compose_from("export", arguments, SCRIPT)
    with uncollected():  # imports torch: seconds that a typo need not wait for
        from isaseg.inference.export import run

    run(cfg)
    return 0

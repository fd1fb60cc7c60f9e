"""Write a trained network in other formats, to use it elsewhere or share it.

usage: isaseg export checkpoint=FILE output=DIR [KEY=VALUE ...]

Writes into the folder `output`:
  model.safetensors   the weights, nothing that could run
  config.json         the description of the network
  README.md           a model card: data, classes, protocol, commit, command, and the scores of the run
  model.onnx          a graph for any number of images of any size, compared with PyTorch before it is written; needs
                      `pip install 'isaseg[onnx]'`
Every command takes the folder as checkpoint=, and so does isaseg.Segmenter.from_pretrained.

  checkpoint=FILE     from training, mmsegmentation or openseg; or an exported folder, or USER/NAME on the hub
  formats=[onnx]      only model.onnx; [safetensors]: only the others
  push_to_hub=USER/NAME
                      upload these files to the Hugging Face hub, after `hf auth login`. The repository is public if it
                      is new: for a private one, create it there first
  +trust=[mylab]      where the network has parts of your own package
  group_size=[8,8]    and
  align_corners=true  for a published file that has lost its configuration

Examples:
  isaseg export checkpoint=outputs/lamps_isa/RUN/checkpoints/best.ckpt output=exported
  isaseg export checkpoint=outputs/lamps_isa/RUN/checkpoints/best.ckpt output=exported push_to_hub=USER/NAME
  isaseg export checkpoint=isanet_r50-d8_769x769.pth output=exported 'formats=[onnx]'

Each takes `image`, uint8 RGB (batch, 3, height, width), neither scaled nor normalised, and returns `logits`, float32
(batch, classes, height, width); the largest logit is the class:

  image = numpy.asarray(PIL.Image.open("a.jpg").convert("RGB")).transpose(2, 0, 1)[None]

  session = onnxruntime.InferenceSession("exported/model.onnx")
  labels = session.run(["logits"], {"image": image})[0].argmax(1)

  segmenter = isaseg.load_segmenter("exported")
  labels = segmenter(torch.from_numpy(image.copy())).argmax(1)

For one size there is also torch.export.export(segmenter.fuse(), (torch.from_numpy(image.copy()),)).

Both formats hold the description of the network, with class names and palette, as JSON in the metadata `isaseg`, too.

Keys: conf/export.yaml
"""

from collections.abc import Sequence

from isaseg import config
from isaseg.cli import command


def main(words: Sequence[str] | None = None) -> int:
    """Export; return the exit code, see `command.run`: 2 also if ONNX cannot hold the network."""
    return command.main(__doc__, _work, words, "no file is half-written; run the same command again")


def _work(words: list[str]) -> int:
    cfg = config.compose_from("export", words)
    with command.fast_imports():
        from isaseg.inference.export import export_checkpoint  # torch: a typo is reported before that
    export_checkpoint(cfg)
    return 0

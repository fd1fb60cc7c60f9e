"""mmsegmentation's ISA block and its training step, timed. Run as a script by the Python that has mmseg, not by ours."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmseg_import  # type: ignore[import-not-found]  # noqa: F401

# isort: split
import mmseg  # type: ignore[import-not-found]
import torch
from mmengine.config import Config  # type: ignore[import-not-found]
from mmengine.model import revert_sync_batchnorm  # type: ignore[import-not-found]
from mmengine.structures import PixelData  # type: ignore[import-not-found]
from mmseg.models.decode_heads import isa_head  # type: ignore[import-not-found]
from mmseg.registry import MODELS  # type: ignore[import-not-found]
from mmseg.structures import SegDataSample  # type: ignore[import-not-found]
from mmseg.utils import register_all_modules  # type: ignore[import-not-found]
from serve import serve, timed_work  # type: ignore[import-not-found]
from timed import autocast, block_work, feature_map, pictures_and_target  # type: ignore[import-not-found]


def block(channels: int) -> Any:
    """Return an ISAHead of which only the block is left: what comes before and after it does nothing."""
    head = isa_head.ISAHead(
        isa_channels=channels // 2,
        down_factor=(8, 8),
        in_channels=channels,
        channels=channels,
        num_classes=1,
        in_index=0,
        norm_cfg={"type": "BN"},
    )
    isa_head.torch = SimpleNamespace(cat=lambda maps, dim: maps[0])
    head.in_conv, head.out_conv, head.cls_seg = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    return head


def attention_work(task: dict[str, Any]) -> Callable[[str, str], Callable[[], None]]:
    """Return what makes a work such as `forward 128`; the block takes contiguous maps alone."""
    head = block(task["channels"]).to(task["device"])

    def make(work: str, kind: str) -> Callable[[], None]:
        mode, side = work.split()
        x = feature_map(task["channels"], int(side), task["device"])
        run: Callable[[], None] = block_work(head, lambda x: head([x]), x, mode, kind)
        return run

    return make


def step_work(task: dict[str, Any]) -> Callable[[str, str], Callable[[], None]]:
    """Return what makes a step of ISANet R-50 of its ADE20K configuration, with SGD."""
    device, side = task["device"], task["side"]
    file = Path(mmseg.__file__).parent / ".mim/configs/isanet/isanet_r50-d8_4xb4-80k_ade20k-512x512.py"
    cfg = Config.fromfile(str(file))
    cfg.model.pretrained = None
    cfg.model.data_preprocessor.size = (side, side)
    network = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    image, target = (t.to(device) for t in pictures_and_target(task["batch"], side, 150))
    meta = {"img_shape": (side, side), "ori_shape": (side, side)}
    samples = [SegDataSample(gt_sem_seg=PixelData(data=t[None]), metainfo=meta) for t in target]

    def make(work: str, kind: str) -> Callable[[], None]:
        def run() -> None:
            data = network.data_preprocessor({"inputs": list(image), "data_samples": samples}, True)
            with autocast(kind, device):
                loss, _ = network.parse_losses(network(**data, mode="loss"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    return make


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what mmseg prints is no answer
    register_all_modules()
    task = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    make = {"attention": attention_work, "step": step_work}[task["what"]](task)
    serve(timed_work(make), {"version": mmseg.__version__, "torch": torch.__version__}, answers)


if __name__ == "__main__":
    main()

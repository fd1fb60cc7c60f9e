"""The same as mmsegmentation, where it is installed (`make peers`): its weights in our network give its logits."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isaseg.checkpoints.loading import load_model

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"
needed = pytest.mark.skipif(not PEER.exists(), reason="mmsegmentation is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]


def blobs(size: tuple[int, int]) -> np.ndarray:
    """Return a picture of soft colours with some noise, uint8 (H, W, 3)."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 5, 6, generator=random)
    noise = torch.randn(1, 3, *size, generator=random)
    picture = 120 + 70 * F.interpolate(coarse, size=size, mode="bilinear") + 20 * noise
    return picture.clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()


def run_peer(script: str, task: dict[str, Any], folder: Path) -> None:
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [str(PEER), str(ROOT / "tests" / "peers" / script), str(folder / "task.json")],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "config, sizes, align_corners",
    [
        ("isanet_r50-d8_4xb2-40k_cityscapes-512x1024.py", [(512, 1024), (512, 683), (97, 131)], False),
        ("isanet_r50-d8_4xb2-40k_cityscapes-769x769.py", [(769, 769), (97, 131)], True),
        ("isanet_r101-d8_4xb2-80k_cityscapes-512x1024.py", [(512, 1024), (512, 683), (97, 131)], False),
        ("isanet_r101-d8_4xb2-80k_cityscapes-769x769.py", [(769, 769), (97, 131)], True),
    ],
)
def test_mmsegs_weights_give_its_logits(
    config: str, sizes: list[tuple[int, int]], align_corners: bool, tmp_path: Path
) -> None:
    images = [blobs(size) for size in sizes]
    files = [str(tmp_path / f"image{i}.npy") for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        np.save(file, image)
    run_peer(
        "isanet.py",
        {"config": f"isanet/{config}", "seed": 3, "images": files, "output": str(tmp_path)},
        tmp_path,
    )
    model = load_model(tmp_path / "checkpoint.pth")
    assert (model.kind, model.description["data"]) == ("mmseg", "cityscapes")
    assert model.segmenter.align_corners is align_corners
    assert model.description["classes"][0] == "road"
    for number, image in enumerate(images):
        with torch.no_grad():
            ours = model.segmenter(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
        theirs = torch.from_numpy(np.load(tmp_path / f"{number}.npy"))
        error = (ours - theirs).abs().max()
        print(f"{config} {image.shape[:2]} relative error {error / theirs.abs().max():.2e}")
        assert error <= 1e-5 * theirs.abs().max()
        best = theirs.topk(2, dim=0).values
        differ = ours.argmax(0) != theirs.argmax(0)
        assert (best[0] - best[1])[differ].le(2 * error).all(), "other labels where it is no tie"
        classes = theirs.argmax(0).unique().numel()
        print(f"  {differ.sum()} ties of {differ.numel()} pixels, {classes} classes")

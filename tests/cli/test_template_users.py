"""What a user of a Lightning-Hydra template tries first, by command.

The rest of the table: tests/test_examples.py (own context module, loss, callback and data source),
training/test_own_callbacks.py (EMA, early stopping), training/test_optim.py (Lion), reliability/test_interruptions.py
(Muon, layer decay, frozen stages), runs/test_other_loggers.py (TensorBoard, MLflow) and
reliability/test_configurations.py (a transform of albumentations in the middle of the list).
"""

import json
from pathlib import Path

import pytest

from tests import forked
from tests.reliability.small import SMALL

FEW = [word for word in SMALL if not word.startswith(("data.", "backbone="))]
FEW += ["trainer.max_steps=2", "run_dir=run"]


@pytest.mark.usefixtures("ownlab")
def test_an_own_backbone_and_data_module_and_loss_by_command(tmp_path: Path) -> None:
    """Trained and evaluated; without trust a command names the package."""
    here, own = Path.cwd(), ["--config-dir", "conf", "+trust=[ownlab]"]
    words = ["data=module", "backbone=net", "attention=gate", *FEW]
    loss = [
        "loss.class_weights=0",
        "~loss.class_weights",
        "~loss.average",
        "~loss.ignore_index",
        "loss._target_=ownlab.plain",
        "+loss._partial_=true",
    ]
    words = [*(word for word in words if not word.startswith("loss.")), *loss]
    refused = forked.run("train.py", "--config-dir", "conf", *words, cwd=here, ISASEG_TRUST=None)
    assert refused.returncode == 2 and "+trust=[ownlab]" in refused.stderr
    assert not Path("run").exists() and not Path("ran").exists()
    done = forked.run("train.py", *own, *words, cwd=here, ISASEG_TRUST=None)
    assert done.returncode == 0, done.stderr
    best = "checkpoint=run/checkpoints/best.ckpt"
    words = [best, "--config-dir", "conf", "data=module", "trainer.accelerator=cpu", "output=scores"]
    refused = forked.run("evaluate.py", *words, cwd=here, ISASEG_TRUST=None)
    assert refused.returncode == 2 and "+trust=[ownlab]" in refused.stderr, refused.stderr
    done = forked.run("evaluate.py", *words, "+trust=[ownlab]", cwd=here, ISASEG_TRUST=None)
    assert done.returncode == 0, done.stderr
    trained = json.loads(Path("run/metrics.json").read_text())
    assert json.loads(Path("scores/metrics.json").read_text())["mIoU"] == pytest.approx(trained["val/mIoU"])

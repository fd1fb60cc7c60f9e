"""Runs with data of a user's own package: a source, and a whole LightningDataModule."""

import json
from pathlib import Path

import pytest

from isaseg.checkpoints.loading import load_model
from isaseg.errors import IsasegError
from isaseg.inference.evaluate import evaluate_model
from isaseg.inference.predict import predict_pictures
from isaseg.training.run import train
from tests.conftest import compose_overrides
from tests.inference.tiny import save_picture
from tests.reliability.small import SMALL, loaded
from tests.training.test_own_parts import SEARCH, compose_for

SHORT = [word for word in SMALL if not word.startswith(("data.", "check_data", "pictures"))]
SHORT += [*SEARCH, "pictures=2", "trainer.val_check_interval=3", "run_dir=run"]


@pytest.mark.usefixtures("ownlab")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["data=shapes", "data.num_workers=0", "data.batch_size=2"], ["0", "1"]),
        (["data=module", "+data.module.mask_scale=2"], ["ground", "square"]),
    ],
)
def test_own_data_are_trained_with_resumed_and_scored(words: list[str], names: list[str]) -> None:
    run = [*words, *SHORT]
    train(compose_overrides(*run, "trainer.max_steps=3", "optim.total_steps=6"))
    train(compose_overrides(*run, "trainer.max_steps=6", "optim.total_steps=6", "resume=must"))
    last = loaded(Path("run/checkpoints/last.ckpt"))
    assert last["global_step"] == 6
    assert last["isaseg"]["classes"] == names and len(last["isaseg"]["palette"]) == 2
    assert len(list(Path("run/pictures").glob("*.png"))) == 2
    scored = [*SEARCH, *words, "protocol=none", "trainer.accelerator=cpu", "output=scores"]
    evaluate_model(compose_for("evaluate", *scored), load_model(Path("run/checkpoints/best.ckpt")))
    scores = json.loads(Path("scores/metrics.json").read_text())
    count = 5 if words[0] == "data=shapes" else 4
    pixels = 80 * 96 if "+data.module.mask_scale=2" in words else 40 * 48
    assert scores["images"] == count and sum(map(sum, scores["confusion"])) == count * pixels
    assert len(list(Path("scores/worst").glob("*.png"))) == count
    save_picture(Path("a.png"))
    assert predict_pictures(compose_for("predict", "input=a.png", "output=out", "device=cpu")) == 0


@pytest.mark.usefixtures("ownlab")
def test_a_test_split_without_labels_is_not_scored() -> None:
    source = "data=shapes data.source._target_=ownlab.Shapes +data.source.fault=unlabelled"
    words = [*source.split(), *SHORT, "data.num_workers=0", "trainer.max_steps=1", "score_test=true"]
    scores = train(compose_overrides(*words))
    assert scores["val/mIoU"] > 0 and "test/mIoU" not in scores


@pytest.mark.usefixtures("ownlab")
@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("data=shapes data.source._target_=ownlab.no_source ~data.source.length", "got list for the split"),
        (
            "data=shapes data.source._target_=ownlab.Shapes +data.source.fault=image",
            "RGB image, uint8.*got float64",
        ),
        (
            "data=shapes data.source._target_=ownlab.Shapes +data.source.fault=mask",
            "a mask, uint8.*got int64",
        ),
        (
            "data=shapes data.source._target_=ownlab.Shapes +data.source.fault=labels",
            r"labels 0 to 1 and 255.*got \[7\]",
        ),
        (
            "data=shapes data.source._target_=ownlab.Shapes +data.source.fault=loaded",
            r"return \(image, mask\)",
        ),
        (
            "data=shapes data.source._target_=ownlab.Tensors ~data.source.length",
            "take split=train.*got: missing.*'source'",
        ),
        ("data=shapes data.source._target_=ownlab.failing", "data.source cannot be built.*KeyError: 'train'"),
        ("data=shapes data.source.length=0", "at least one sample from data.source for the split train"),
        ("data=shapes +data.source.longth=4", "data.source.longth.*did you mean 'length'"),
        ("data=module +data.module.fault=float", "train loader of data.module.*got .*image': 'torch.float32"),
        (
            "data=module +data.module.fault=labels",
            r"labels 0 to 1 and 255 from the train loader.*got \[9, 10\]",
        ),
        ("data=module data.module._target_=ownlab.Transfers", "got Transfers with on_after_batch_transfer"),
        ("data=module data.num_classes=3", "expected data.num_classes=2, the number of class names"),
        ("data=module +data.module.batch_sise=3", "data.module.batch_sise.*did you mean 'batch_size'"),
        ("data=module data._target_=ownlab.ShapesData", "no configuration key 'data.name'"),
        (
            "data=module data.module._target_=ownlab.Plain ~data.module.batch_size",
            "a LightningDataModule, got Plain",
        ),
    ],
)
def test_own_data_that_cannot_be_used_are_refused_before_the_first_step(words: str, match: str) -> None:
    with pytest.raises(IsasegError, match=match):
        train(compose_overrides(*words.split(), *SHORT, "trainer.max_steps=1"))
    assert not Path("run").exists()

"""`isaseg predict` when something is wrong: one sentence for each mistake, exit codes, what remains on disk."""

import errno
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isaseg.cli import predict as cli
from isaseg.inference import predict
from isaseg.inference.apply import Inference, predict_labels
from tests.inference.tiny import files, save_picture

COMMAND = cli.main


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough")]
)
def test_too_little_memory_is_reported_and_the_others_are_done(
    error: Exception,
    own_network: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_picture(Path("in/large.png"), 60, 60)
    save_picture(Path("in/small.png"), 8, 8)

    def small_only(segmenter: Any, image: Tensor, how: Inference) -> Tensor:
        if image.shape[2] > 50:
            raise error
        return predict_labels(segmenter, image, how)

    monkeypatch.setattr(predict, "predict_labels", small_only)
    assert tool(f"checkpoint={own_network}", "input=in", "output=out", "write=[labels]") == 2
    err = capsys.readouterr().err
    assert "'in/large.png' in the memory of the device, got too little; give test.mode" in err
    assert files(Path("out")) == {"labels/small.png", "contact_sheet.jpg"}


def test_results_are_not_predicted_from_in_turn(own_network: Path, refused: Callable[..., str]) -> None:
    save_picture(Path("photos/a.png"), 8, 8)
    line = refused(f"checkpoint={own_network}", "input=photos", "output=./photos/")
    assert "expected output to be another folder than input, got 'photos' for both" in line
    assert files(Path("photos")) == {"a.png"}


@pytest.mark.parametrize(
    "name", ["labels/a.png", "overlays/a.jpg", "legend.png", "contact_sheet.jpg", "probabilities/a.npy"]
)
def test_a_full_disk_is_reported(
    name: str,
    own_network: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_picture(Path("a.png"), 8, 8)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target == Path("out", name):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    words = ("input=a.png", "output=out", "write=[labels,overlays,probabilities]")
    assert tool(f"checkpoint={own_network}", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and f"got 'out/{name}': No space left on device" in line
    assert name not in files(Path("out"))


def test_an_output_that_is_no_folder_is_reported_before_the_work(
    own_network: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(Path("a.png"), 8, 8)
    Path("taken").write_text("a file")
    monkeypatch.setattr(predict, "predict_labels", None)
    line = refused(f"checkpoint={own_network}", "input=a.png", "output=taken")
    assert "got 'taken': File exists; name another" in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_has_its_own_exit_code(
    number: signal.Signals,
    code: int,
    own_network: Path,
    tool: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_picture(Path("in/a.png"), 8, 8)
    save_picture(Path("in/b.png"), 9, 9)

    def second(segmenter: Any, image: Tensor, how: Inference) -> Tensor:
        if image.shape[2] == 9:
            os.kill(os.getpid(), number)
        return predict_labels(segmenter, image, how)

    monkeypatch.setattr(predict, "predict_labels", second)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell's background
    try:
        assert tool(f"checkpoint={own_network}", "input=in", "output=out") == code
    finally:
        signal.signal(signal.SIGINT, ignored)
    word = {130: "interrupted", 143: "terminated"}[code]
    assert capsys.readouterr().err.startswith(f"error: {word}; every file that is there is whole")
    assert files(Path("out")) == {"labels/a.png", "overlays/a.jpg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("outputt=x", "no configuration key 'outputt'; did you mean 'output'? see --help"),
        ("test.crop_sise=[4,4]", "no configuration key 'test.crop_sise'; did you mean 'test.crop_size'?"),
        ("data=cityscape", "no option 'cityscape' in the group data; did you mean 'cityscapes'?"),
        ("a.png", "expected KEY=VALUE, got 'a.png'; see --help"),
        ("--fast", "expected KEY=VALUE, got '--fast'"),
        ("output=a=b", "expected KEY=VALUE, got 'output=a=b'; quotes may be missing, see --help"),
        ("output=~/a", "expected KEY=VALUE, got 'output=~/a'; write $HOME for ~, see --help"),
        ("checkpoint=", "expected a value for checkpoint, got none"),
        ("output=", "expected a value for output, got none"),
        ("", "got none; give input=FOLDER_OR_FILES, or files"),
        ("input=nowhere", "expected a picture or a folder, got input='nowhere'"),
        ("input=a.png", "expected a checkpoint file, got path='x', which does not exist"),
        (
            "write=[label]",
            "expected write to be a list of some of labels, overlays, probabilities, entropy, as [labels], got",
        ),
        (
            "write=labels",
            "expected write to be a list of some of labels, overlays, probabilities, entropy, as [labels], got",
        ),
        (
            "write=[]",
            "expected write to be a list of some of labels, overlays, probabilities, entropy, as [labels], got",
        ),
        ("precision=16", "expected precision to be 32 or 'bf16', got precision=16"),
        ("max_pixels=0", "expected max_pixels to be greater than 0, got max_pixels=0"),
        ("whole_pixels=-1", "expected whole_pixels to be greater than or equal to 0"),
        ("device=gpu", "expected device to be auto, cpu, cuda or cuda:NUMBER, got device=gpu"),
        ("device=cuda:300", "expected device to be auto, cpu, cuda or cuda:NUMBER, got device=cuda:300"),
        ("device=cuda:99", "expected a device that is there, got device=cuda:99 and"),
        ("test.mode=slides", "expected test.mode to be 'auto', 'whole' or 'slide', got"),
        ("test.crop_size=null", "expected test.crop_size to be [height, width]"),
        ("protocol=mmseg", "no values of protocol=mmseg are known for data=None"),
        ("protocol=mmseg data=camvid", "no values of protocol=mmseg are known for data=camvid"),
        ("protocol=mseg", "no option 'mseg' in the group protocol; did you mean 'mmseg'?"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: str, message: str, refused: Callable[..., str]) -> None:
    Path("a.png").touch()
    assert message in refused("checkpoint=x", "output=x", *arguments.split())


@pytest.mark.parametrize("key", ["checkpoint", "output"])
def test_what_must_be_given_is_asked_for(key: str, refused: Callable[..., str]) -> None:
    other = {"checkpoint": "output", "output": "checkpoint"}[key]
    assert f"expected a value for {key}, got none; give it as {key}=VALUE" in refused(f"{other}=x")


def test_a_data_set_that_does_not_fit_the_checkpoint_is_reported_before_the_work(
    cityscapes: Path, refused: Callable[..., str]
) -> None:
    save_picture(Path("a.png"), 8, 8)
    line = refused(f"checkpoint={cityscapes}", "input=a.png", "output=out", "data=ade20k")
    assert "expected a network of the 150 classes of ADE20K, got one of 19" in line


@pytest.mark.parametrize("arguments", ["--help", "-h", "data=lip --help", ""])
def test_help_lists_the_keys(
    arguments: str, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(*arguments.split()) == (0 if arguments else 2)
    text = capsys.readouterr().out
    assert text.startswith("usage: isaseg predict checkpoint=FILE input=FOLDER_OR_FILES output=DIR")
    assert max(len(line) for line in text.splitlines()) <= 122


def test_what_the_help_shows_composes(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("--help")
    text = capsys.readouterr().out
    examples = re.findall(r"^  isaseg predict (.+)$", text, flags=re.MULTILINE)
    keys = re.findall(r"^  ([a-z_.]+=\S+)", text, flags=re.MULTILINE)
    assert len(examples) == 3 and len(keys) > 10
    monkeypatch.setattr(predict, "predict_pictures", lambda cfg, files: predict.check_prediction(cfg) or 0)
    monkeypatch.setattr(predict.torch.cuda, "device_count", lambda: 2)
    for line in examples:
        assert tool(*shlex.split(line)) == 0
    assert tool("output=x", *keys) == 0, capsys.readouterr().err
    (quoted,) = re.findall(r'^"(input=.+)";', text, flags=re.MULTILINE)
    assert tool("checkpoint=x", "output=x", quoted) == 0

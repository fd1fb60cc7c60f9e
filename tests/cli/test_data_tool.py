"""`src/data.py` as a user calls it: exit codes, one sentence for each mistake, files where they should be."""

import gc
import hashlib
import json
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from isaseg import config
from isaseg.cli import data as commands
from tests import fakes, forked
from tests.conftest import compose_overrides

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "data.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Give `tool(*arguments)`: the exit code of the same command line in this process, in a folder `cwd`."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    handler = signal.getsignal(signal.SIGTERM)

    def called(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        try:
            return commands.main(arguments)
        finally:
            signal.signal(signal.SIGTERM, handler)
            gc.unfreeze()  # what `command.fast_imports` froze

    return called


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files(folder)}


def test_check_lists_every_fault_and_writes_only_below_the_output_folder(tmp_path: Path) -> None:
    data = fakes.make_fake_cityscapes(tmp_path / "data", 4)
    broken = sorted(data.glob("leftImg8bit/train/aachen/*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:100])
    strange = sorted(data.glob("gtFine/val/frankfurt/*_labelIds.png"))[0]
    Image.fromarray(np.full((32, 64), 77, np.uint8)).save(strange)
    before = digests(data)
    (tmp_path / "cwd").mkdir()
    words = ["check", "data=cityscapes", f"data.root={data}", "output_dir=out"]
    done = forked.run("data.py", *words, cwd=tmp_path / "cwd")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert str(broken) in errors[0] and "replace" in errors[0]
    assert f"got the id 77 in 2048 pixels of mask='{strange}'" in errors[1] and "fix the file" in errors[1]
    assert (
        "warning: Cityscapes train has 4 images, the published split 2975: scores do not compare"
        in done.stderr
    )
    assert "traffic light" in done.stdout
    assert "faults: 2; report.json and contact_sheet.png are in 'out/data/cityscapes'" in done.stdout
    names = {"report.json", "contact_sheet.png"}
    assert files(tmp_path / "cwd") == {f"out/data/cityscapes/{name}" for name in names}
    assert digests(data) == before
    report = json.loads((tmp_path / "cwd" / "out/data/cityscapes/report.json").read_text())
    assert [fault["file"] for fault in report["faults"]] == [str(broken), str(strange)]
    with Image.open(tmp_path / "cwd" / "out/data/cityscapes/contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG" and sheet.width == 1600 and 400 < sheet.height < 4000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("chekk data=camvid", "one of check, prepare, cache first, got 'chekk'; did you mean 'check'?"),
        ("data=camvid check", "got 'data=camvid'; see --help"),
        ("check data=camvit", "no option 'camvit' in the group data; did you mean 'camvid'?"),
        ("check data=camvid workerz=2", "'workerz'; did you mean 'workers'? see --help"),
        ("check data=camvid --fast", "expected KEY=VALUE, got '--fast'"),
        ("check data=camvid workers=0", "workers to be greater than 0 or null, got workers=0"),
        ("check data=camvid splits=[trainn]", "splits[0] to be 'train', 'val' or 'test' or null, got"),
        (
            "check data=camvid splits=[]",
            "splits to have at least 1 item after validation, not 0 or null, got splits=[]",
        ),
        ("cache data=camvid verify=yess", "verify to be true or false, got verify=yess"),
        ("check data=camvid data.root=nowhere", "expected CamVid in a folder, got data.root='now"),
        ("check data=camvid", "got data.root=None"),
        ("cache data=folder", "expected a value for data.classes"),
        ("check data=lamps", "in files, got data=lamps, which is generated; give another"),
        ("cache data=cards", "got data=cards, which is generated"),
        ("check", "which is generated; give another as data=NAME"),
        ("prepare data=camvid", "expected a folder as data.root, got none; give it as data.root=/path/to/it"),
        ("prepare data=camvid data.root=x", "expected a folder as archives, got none"),
        ("prepare data=lamps data.root=x archives=y", "a data set whose official archives are known"),
        ("prepare data=lip data.root=x archives=y", "archives of LIP in 'y', got none"),
        ("prepare data=lip data.root=x verify=true", "run prepare first"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: str, message: str, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(*arguments.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("error: ") == 1, err
    assert message in err
    assert out == ""
    assert files(Path.cwd()) == set()


@pytest.mark.parametrize("arguments", ["--help", "-h", "check --help", "cache data=lip --help", ""])
def test_help_shows_the_commands(
    arguments: str, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(*arguments.split()) == (0 if arguments else 2)
    text = capsys.readouterr().out
    assert "usage: isaseg data {check|prepare|cache} data=NAME" in text
    assert all(f"\n{word} " in text for word in ("check", "prepare", "cache"))
    names = next(line for line in text.splitlines() if line.startswith("Data sets: "))
    assert "lip" in names and "_common" not in names


def test_what_the_help_shows_composes(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("--help")
    shown = capsys.readouterr().out.splitlines()
    lines = [line.split("isaseg data ")[1] for line in shown if line.startswith("  isaseg data")]
    keys = [line.split()[0] for line in shown if line.startswith("  ") and "=" in line.split()[0]]
    assert len(lines) == 5 and len(keys) > 4
    for name in ("check", "prepare", "cache"):
        monkeypatch.setattr(commands, f"_{name}", lambda cfg: 0)
    for line in lines:
        assert tool(*line.replace("'", "").split()) == 0
    assert tool("check", *dict.fromkeys(keys)) == 0


def test_a_sound_data_set_passes(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fakes.make_fake_folder(tmp_path / "data", test=True)
    arguments = ("check", "data=folder", f"data.root={data}", "data.classes=[sky,ground,cow]")
    assert tool(*arguments) == 0
    out, err = capsys.readouterr()
    assert "faults: 0" in out and "ground" in out
    assert err == ""
    report = json.loads(Path("outputs/data/folder/report.json").read_text())
    assert list(report["splits"]) == ["train", "val", "test"]
    assert tool(*arguments, "splits=val") == 0
    report = json.loads(Path("outputs/data/folder/report.json").read_text())
    assert list(report["splits"]) == ["val"]
    assert tool(*arguments, "data.name=../../up", "splits=[train,val]") == 0
    assert files(Path.cwd()) == {
        f"outputs/data/{name}/{file}"
        for name in ("folder", "-..-up")
        for file in ("report.json", "contact_sheet.png")
    }


def test_another_number_of_images_is_a_fault_where_that_is_asked(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fakes.make_fake_ade20k(tmp_path / "data")
    assert tool("check", "data=ade20k", f"data.root={data}") == 0
    assert capsys.readouterr().err.count("the published split") == 2
    assert tool("check", "data=ade20k", f"data.root={data}", "data.strict_size=true") == 2
    err = capsys.readouterr().err
    assert err.count("error: ADE20K ") == 2 and "warning" not in err
    assert "with published ones; complete the data set, or set data.strict_size=false" in err


def test_a_split_that_is_incomplete_does_not_hide_the_others(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fakes.make_fake_camvid(tmp_path / "data")
    (data / "valannot" / "0001TP_000001.png").unlink()
    broken = data / "testannot" / "0001TP_000002.png"
    broken.write_bytes(b"")
    assert tool("check", "data=camvid", f"data.root={data}") == 2
    err = capsys.readouterr().err
    assert "missing: mask of" in err and "0001TP_000001.png" in err and str(broken) in err
    report = json.loads(Path("outputs/data/camvid/report.json").read_text())
    assert list(report["splits"]) == ["train", "test"]
    assert [fault["split"] for fault in report["faults"]] == ["val", "test"]


def test_the_cache_is_made_where_training_looks_for_it(
    tool: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = fakes.make_fake_camvid(tmp_path / "data")
    arguments = ("cache", "data=camvid", f"data.root={data}", "workers=2")
    assert tool(*arguments) == 0
    expected = {
        f"outputs/cache/camvid/{split}/0001TP_{i:06d}.{kind}"
        for split in ("train", "val", "test")
        for i in range(3)
        for kind in ("image", "labels")
    }
    assert files(Path.cwd()) == expected
    out = capsys.readouterr().out
    assert "CamVid val: 3 of 3 samples in" in out and "6 files written now, 0 of them repaired" in out
    before = digests(Path.cwd())
    assert tool(*arguments, "verify=true") == 0
    assert "0 files written now" in capsys.readouterr().out
    Path("outputs/cache/camvid/val/0001TP_000001.image").write_bytes(b"damaged")
    (data / "train" / "0001TP_000002.jpg").write_bytes(b"damaged")
    assert tool(*arguments) == 2
    out, err = capsys.readouterr()
    assert "6 files written" not in out and "1 files written now, 1 of them repaired" in out
    assert "warning: the cache file 'outputs/cache/camvid/val/0001TP_000001.image' was damaged" in err
    assert err.count("error: ") == 1 and f"'{data / 'train' / '0001TP_000002.jpg'}' (CamVid, train)" in err
    assert digests(Path.cwd()) == before
    elsewhere = tmp_path / "a quick disk"
    assert tool("cache", "data=camvid", f"data.root={data}", "splits=[val]", f"data.cache='{elsewhere}'") == 0
    assert {name.split("/")[0] for name in files(elsewhere)} == {"val"}
    monkeypatch.setenv("HOME", str(tmp_path))
    capsys.readouterr()
    words = [f"data.root={data}", "data.cache='~/a quick disk'"]
    assert tool("cache", "data=camvid", "splits=[val]", *words) == 0
    assert "0 files written now" in capsys.readouterr().out
    datamodule = config.build(compose_overrides("data=camvid", *words).data, "data")
    assert datamodule.source("val").cache == elsewhere


@pytest.mark.parametrize("command", ["check", "cache"])
def test_a_folder_that_cannot_be_written_is_reported(
    command: str, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fakes.make_fake_camvid(tmp_path / "data")
    Path("taken").write_text("a file")
    assert tool(command, "data=camvid", f"data.root={data}", "output_dir=taken") == 2
    assert capsys.readouterr().err.startswith("error: expected a file or folder that can be used, got 'taken")


def test_archives_are_unpacked_checked_and_looked_after(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fakes.make_fake_ade20k(tmp_path / "data")
    (tmp_path / "downloads").mkdir()
    with zipfile.ZipFile(tmp_path / "downloads" / "ADEChallengeData2016.zip", "w") as archive:
        for name in files(data):
            archive.write(data / name, f"ADEChallengeData2016/{name}")
    root = tmp_path / "prepared"
    arguments = ("prepare", "data=ade20k", f"data.root={root}")
    assert tool(*arguments, f"archives={tmp_path / 'downloads'}") == 0, capsys.readouterr().err
    assert "checksums of 9 files" in capsys.readouterr().out
    assert tool("check", "data=ade20k", f"data.root={root}") == 0
    assert tool(*arguments, "verify=true") == 0
    image = next(root.rglob("ADE_train_00000001.jpg"))
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert tool(*arguments, "verify=true") == 2
    out, err = capsys.readouterr()
    assert "faults: 1" in out and str(image) in err


def test_annotations_become_masks_that_pass_the_check(tmp_path: Path) -> None:
    """COCO's polygons on photographs, some of which are turned: through the two commands that a user types."""
    images, regions = [], []
    for number in range(12):
        flag, name = 6 if number % 3 == 0 else 1, f"{'val' if number > 7 else 'train'}/a photo {number}.jpg"
        width, height = (30, 40) if flag == 6 else (40, 30)  # upright; all are stored as 40 x 30
        exif = Image.Exif()
        exif[0x0112] = flag
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * number, 90, 30)).save(tmp_path / "photos" / name, exif=exif)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        corners = [5, 5, 25, 5, 25, 25, 5, 25]
        regions.append({"id": number, "image_id": number, "category_id": 3, "segmentation": [corners]})
    content = {"images": images, "annotations": regions, "categories": [{"id": 3, "name": "dog"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    words = ["data=folder", "data.root=mine", "data.classes=[background,dog]"]
    prepare = ["prepare", *words, "images=photos", "masks=coco.json"]
    unknown = forked.run("data.py", *prepare, "data.classes=[background,cat]", cwd=tmp_path)
    assert unknown.returncode == 2 and "got dog (12 shapes in 12 of 12 files" in unknown.stderr
    assert unknown.stderr.count("error: ") == 1 and not (tmp_path / "mine").exists()
    made = forked.run("data.py", *prepare, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "annotations of COCO: 12 pictures with masks in 'mine'" in made.stdout
    assert "turned by their EXIF flag when they are read: 4 pictures" in made.stdout
    assert "background 66.67 %, dog 33.33 %, ignored 0.00 %" in made.stdout
    checked = forked.run("data.py", "check", *words, cwd=tmp_path)
    assert checked.returncode == 0 and "faults: 0" in checked.stdout, checked.stderr

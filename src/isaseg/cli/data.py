"""Check, prepare or cache a data set.

usage: isaseg data {check|prepare|cache} data=NAME data.root=/path/to/it [KEY=VALUE ...]

check    Decode every file and report all that is wrong; count sizes and classes; draw samples under their labels.
         Writes report.json and contact_sheet.png into <output_dir>/data/<name>.
  splits=[train,val]       only these
  workers=8                threads; by default one for each core
  data.strict_size=true    a number of images other than the published one is a fault, not a warning

prepare  Unpack the official archives into the layout that is read, and convert labels.
  archives=FOLDER          where the archives are, as they were downloaded
  verify=true              no archives: compare what is in data.root with the checksums noted by prepare
  With data=folder: convert the masks of your own pictures into the layout that is read, below data.root.
  images=FOLDER            the pictures, which are linked, or copied from another disk
  masks=PATH               a folder of masks in colours (data.source.palette), with a palette or of 1 to 16 bits; a folder
                           of LabelMe's JSON files; one JSON of COCO; one XML of CVAT (CVAT for images 1.1)
  ignored=[[0,0,0],void]   colours and labels that are left out
  unannotated=skip         leave out pictures without a mask; background: all of them is background
  splits=train             put them into images/train and masks/train

cache    Decode every file once, so that training reads only the pixels of a crop. The same command continues.
         Writes into data.cache, by default <output_dir>/cache/<name>.
  splits, workers          as for check
  verify=true              read the whole cache, and write again what is damaged

--config-dir DIR, for all three: a folder of your own with more data sets.

Examples:
  isaseg data check data=cityscapes data.root=/path/to/cityscapes
  isaseg data check data=folder data.root=/path/to/it 'data.classes=[sky,ground]'
  isaseg data prepare data=lip archives=/path/to/downloads data.root=/path/to/lip
  isaseg data prepare data=folder images=photos masks=coco.json data.root=/path/to/it 'data.classes=[background,dog]'
  isaseg data cache data=cityscapes data.root=/path/to/cityscapes 'splits=[train]'

Keys: conf/data_tool.yaml and conf/data
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt

from isaseg import config
from isaseg.cli import command
from isaseg.config.checks import check_nodes
from isaseg.errors import ConfigError, DataError
from isaseg.files import save_figure
from isaseg.runs.run_folder import write_json

if TYPE_CHECKING:
    from isaseg.data.source import FileSource
    from isaseg.data.tools.inspection import Fault

_WORDS = ("check", "prepare", "cache")
_Byte = Annotated[int, Field(ge=0, le=255)]
_KEYS: dict[str, Any] = {
    "splits": Annotated[list[Literal["train", "val", "test"]], Field(min_length=1)] | None,
    "workers": PositiveInt | None,
    "verify": bool,
    "images": str | None,
    "masks": str | None,
    "ignored": list[str | tuple[_Byte, _Byte, _Byte]],
    "unannotated": Literal["refuse", "skip", "background"],
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code, see `command.run`: 2 also for faulty files."""
    names = sorted(path.stem for path in (config.conf_dir() / "data").glob("[!_]*.yaml"))
    text = f"{__doc__}Data sets: {', '.join(names)}\n"
    return command.main(text, _work, words, "no file is half-written; run the same command again")


def _work(words: list[str]) -> int:
    if words[0] not in _WORDS:
        hint = config.suggest(words[0], _WORDS)
        raise ConfigError(f"expected one of {', '.join(_WORDS)} first, got '{words[0]}'; {hint}see --help")
    cfg = config.compose_from("data_tool", words[1:])
    with command.fast_imports():
        import isaseg.data.module  # noqa: F401  # torch: a typo is reported before that
    cfg.splits = [cfg.splits] if isinstance(cfg.splits, str) else cfg.splits
    plain = check_nodes(cfg)
    for key, annotation in _KEYS.items():
        config.check_value(key, plain[key], annotation)
    return {"check": _check, "prepare": _prepare, "cache": _cache}[words[0]](cfg)


def _check(cfg: DictConfig) -> int:
    """Report on every file, into `config.data_dir`; return 0, or 2 if there are faults."""
    from rich.console import Console

    from isaseg.data.tools.contact_sheet import contact_sheet
    from isaseg.data.tools.inspection import Fault, as_json, inspect_split, tables

    sources, faults = _find(cfg)
    folder = config.data_dir(cfg)
    folder.mkdir(parents=True, exist_ok=True)  # before the work whose result goes there
    reports = [inspect_split(source, cfg.workers) for source in sources]
    for report in reports:
        faults += report.faults
        if report.warning and cfg.data.strict_size:
            text = f"{report.warning}; complete the data set, or set data.strict_size=false"
            faults.append(Fault(report.source.split, "", str(cfg.data.root), text))
        elif report.warning:
            print(f"warning: {report.warning}", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 110).print(tables(sources[0].info.title, reports))
    content = as_json(cfg.data.name, cfg.data.root, reports, faults)
    write_json(folder / "report.json", content)
    save_figure(contact_sheet(reports), folder / "contact_sheet.png")
    for fault in faults:
        command.report(fault.text)
    print(f"faults: {len(faults)}; report.json and contact_sheet.png are in '{folder}'")
    return 2 if faults else 0


def _cache(cfg: DictConfig) -> int:
    """Write or verify the cache of decoded files; return 0, or 2 if samples cannot be decoded."""
    from isaseg.data.tools.build_cache import build_cache

    sources, faults = _find(cfg)
    errors = [fault.text for fault in faults]
    folder = Path(cfg.data.cache or Path(cfg.output_dir, "cache", config.data_dir(cfg).name)).expanduser()
    for source in sources:
        source.cache = folder
        report = build_cache(source, cfg.workers, cfg.verify)
        errors += report.errors
        print(
            f"{source.info.title} {source.split}: {report.samples} of {len(source)} samples in "
            f"'{folder / source.split}', {report.written} files written now, {len(report.repaired)} of them repaired"
        )
        for path in report.repaired:
            print(f"warning: the cache file '{path}' was damaged and is written again", file=sys.stderr)
    for text in errors:
        command.report(text)
    return 2 if errors else 0


def _prepare(cfg: DictConfig) -> int:
    """Unpack official archives or convert own masks, or with `verify` compare files with their noted checksums.

    Return 2 if one differs.
    """
    from isaseg.data.tools.manifest import verify
    from isaseg.data.tools.prepare import prepare

    own = cfg.data.get("source", {}).get("_target_") == "isaseg.data.sets.folder.folder"
    needed = {"data.root": cfg.data.root}
    if not cfg.verify:
        needed |= {"images": cfg.images, "masks": cfg.masks} if own else {"archives": cfg.archives}
    for key, value in needed.items():
        if value is None:
            raise ConfigError(f"expected a folder as {key}, got none; give it as {key}=/path/to/it")
    root = Path(str(cfg.data.root)).expanduser()
    if cfg.verify:
        faults = verify(root)
        for text in faults:
            command.report(text)
        print(f"faults: {len(faults)} in '{root}'")
        return 2 if faults else 0
    for line in _own(cfg, root) if own else prepare(cfg.data.name, Path(str(cfg.archives)), root):
        print(line)
    return 0


def _own(cfg: DictConfig, root: Path) -> list[str]:
    from isaseg.data.sets.folder import folder_info
    from isaseg.data.tools.own_masks import OwnMasks, convert_own

    source = OmegaConf.to_container(cfg.data.source, resolve=True)
    assert isinstance(source, dict)
    info = folder_info(source["classes"], source["palette"], source["ignore"], source["ignore_index"])
    if len(cfg.splits or ()) > 1:
        raise ConfigError(f"expected one split for the pictures, got splits={cfg.splits}")
    images, masks = (Path(str(path)).expanduser() for path in (cfg.images, cfg.masks))
    ignored = [entry if isinstance(entry, str) else tuple(entry) for entry in cfg.ignored]
    settings = (source["palette"], ignored, cfg.unannotated, source.get("exif"), "".join(cfg.splits or ()))
    return convert_own(OwnMasks(images, masks, root, info, *settings))


def _find(cfg: DictConfig) -> "tuple[list[FileSource], list[Fault]]":
    """Return the splits in files that are asked for and, if others are there, what keeps a split from being found."""
    from isaseg.data.module import SPLITS, SegmentationDataModule
    from isaseg.data.source import FileSource
    from isaseg.data.tools.inspection import Fault

    module = config.build(cfg.data, "data")
    if not isinstance(module, SegmentationDataModule):
        raise ConfigError(f"expected a data set in files, got data={cfg.data.name}, a LightningDataModule")
    sources: list[FileSource] = []
    faults: list[Fault] = []
    for split in cfg.splits or SPLITS:
        try:
            source = module.source(split) if cfg.splits else module.find(split)
        except DataError as error:
            faults.append(Fault(split, "", str(cfg.data.root), str(error)))
            continue
        if source is not None and not isinstance(source, FileSource):
            raise ConfigError(
                f"expected a data set in files, got data={cfg.data.name}, which is generated; give another as data=NAME "
                "data.root=/path/to/it, see --help"
            )
        if source is not None:
            source.cache = None
            sources.append(source)
    if not sources:
        raise DataError(faults[0].text)
    return sources, faults

"""The commands of `src/data.py`, from a composed configuration to an exit code."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from isaseg import config
from isaseg.data.module import SPLITS, SegmentationDataModule
from isaseg.data.source import FileSource
from isaseg.data.tools.build_cache import build_cache
from isaseg.data.tools.contact_sheet import contact_sheet
from isaseg.data.tools.inspection import Fault, SplitReport, as_json, inspect_split, render, tables
from isaseg.data.tools.prepare import prepare as unpack_archives
from isaseg.data.tools.prepare import verify
from isaseg.errors import ConfigError, DataError
from isaseg.files import replace_file

_FAULTS_TOLD = 20


def check(cfg: DictConfig) -> int:
    """Report on every file, into `config.data_dir`; return 0, or 2 if there are faults.

    Raises:
        ConfigError: For a value that cannot work.
        DataError: If no split can be found.
    """
    sources, faults = _find(cfg)
    folder = config.data_dir(cfg)
    _make(folder)
    reports = [inspect_split(source, cfg.workers) for source in sources]
    for report in reports:
        faults += report.faults
        if report.warning and cfg.data.strict_size:
            text = f"{report.warning}; complete the data set, or set data.strict_size=false"
            faults.append(Fault(report.split, "", str(cfg.data.root), text))
        elif report.warning:
            _tell("warning", report.warning)
    _save(folder, cfg, sources, reports, faults)
    for fault in faults[:_FAULTS_TOLD]:
        _tell("error", fault.text)
    if len(faults) > _FAULTS_TOLD:
        _tell("error", f"{len(faults) - _FAULTS_TOLD} more faults are in '{folder / 'report.json'}'")
    print(f"faults: {len(faults)}; report.json, report.txt and contact_sheet.png are in '{folder}'")
    return 2 if faults else 0


def cache(cfg: DictConfig) -> int:
    """Write or verify the cache of decoded files; return 0, or 2 if samples cannot be decoded.

    Raises:
        ConfigError: For a value that cannot work.
        DataError: If a split is absent, or the cache cannot be written.
    """
    sources, faults = _find(cfg)
    errors = [fault.text for fault in faults]
    folder = Path(cfg.data.cache or Path(cfg.output_dir, "cache", config.data_dir(cfg).name))
    for source in sources:
        source.cache = folder
        report = build_cache(source, cfg.workers, cfg.verify)
        errors += report.errors
        print(
            f"{source.info.title} {source.split}: {report.samples} of {len(source)} samples, {report.size / 1e6:.1f} MB "
            f"in '{folder / source.split}', {report.written} files written now, {len(report.mended)} of them mended"
        )
        for path in report.mended:
            _tell("warning", f"the cache file '{path}' was damaged and is written again")
    for text in errors:
        _tell("error", text)
    return 2 if errors else 0


def prepare(cfg: DictConfig) -> int:
    """Bring the official archives into the layout that is read, or with `verify` compare what is there with its list.

    Returns:
        0, or 2 if a file is not as it was prepared.

    Raises:
        ConfigError: For a value that cannot work, or a data set without archives.
        DataError: If an archive or the folder cannot be used.
    """
    _check(cfg)
    for key, value in (("data.root", cfg.data.root), *(() if cfg.verify else (("archives", cfg.archives),))):
        if value is None:
            raise ConfigError(f"expected a folder as {key}, got none; give it as {key}=/path/to/it")
    root = Path(str(cfg.data.root)).expanduser()
    if cfg.verify:
        faults = verify(root)
        for text in faults[:_FAULTS_TOLD]:
            _tell("error", text)
        print(f"faults: {len(faults)} in '{root}'")
        return 2 if faults else 0
    checksums = None if cfg.checksums is None else Path(str(cfg.checksums)).expanduser()
    for line in unpack_archives(cfg.data.name, Path(str(cfg.archives)), root, checksums):
        print(line)
    return 0


def _find(cfg: DictConfig) -> tuple[list[FileSource], list[Fault]]:
    """Return the splits in files that are asked for and, if others are there, what keeps a split from being found."""
    _check(cfg)
    module: SegmentationDataModule = config.build(cfg.data, "data")
    asked = cfg.splits
    sources, faults = [], []
    errors: list[DataError] = []
    for split in SPLITS if asked is None else asked:
        try:
            source = module.find(split) if asked is None else module.source(split)
        except DataError as error:
            errors.append(error)
            faults.append(Fault(split, "", str(cfg.data.root), str(error)))
            continue
        if source is not None and not isinstance(source, FileSource):
            raise ConfigError(
                f"expected a data set in files, got data={cfg.data.name}, which is generated; give another as data=NAME "
                "data.root=/path/to/it, see `python src/data.py --help`"
            )
        if source is not None:
            source.cache = None
            sources.append(source)
    if not sources:
        raise errors[0]
    return sources, faults


def _check(cfg: DictConfig) -> None:
    plain: dict[str, Any] = config.check_nodes(cfg)
    splits = [plain["splits"]] if isinstance(plain["splits"], str) else plain["splits"]
    if splits is not None and not (isinstance(splits, list) and splits and set(splits) <= set(SPLITS)):
        raise ConfigError(
            f"expected splits as a list of {', '.join(SPLITS)}, or null for all, got splits={splits}"
        )
    workers = plain["workers"]
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ConfigError(f"expected workers to be an integer of at least 1, or null, got workers={workers}")
    for key in ("verify", "data.strict_size"):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise ConfigError(f"expected {key} to be true or false, got {key}={OmegaConf.select(cfg, key)}")
    cfg.splits = splits


def _make(folder: Path) -> None:
    """Make the folder before the work for what goes into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"expected to write into '{folder}', got {error}; give another output_dir=/path"
        ) from error


def _save(
    folder: Path,
    cfg: DictConfig,
    sources: Sequence[FileSource],
    reports: Sequence[SplitReport],
    faults: Sequence[Fault],
) -> None:
    shown = tables(sources[0].info.title, reports)
    Console(width=None if sys.stdout.isatty() else 110).print(shown)
    content = as_json(cfg.data.name, cfg.data.root, reports, faults)
    with replace_file(folder / "report.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    with replace_file(folder / "report.txt") as file:
        file.write(render(shown).encode())
    with replace_file(folder / "contact_sheet.png") as file:
        contact_sheet(list(zip(sources, reports, strict=True))).save(file, format="png")


def _tell(kind: str, text: str) -> None:
    print(f"{kind}: {text}", file=sys.stderr)

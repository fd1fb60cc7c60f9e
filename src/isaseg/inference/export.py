"""A network in other formats: safetensors, ONNX for any size, a torch.export program for one size.

Each is compared with PyTorch's own logits before it is written. All map `image`, uint8 RGB (B, 3, H, W), to `logits`,
float32 (B, K, H, W), as `Segmenter.forward` does.
"""

import copy
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt
from torch import Tensor

from isaseg.checkpoints.loading import Model, load_model
from isaseg.checkpoints.writing import save_safetensors
from isaseg.config import check_value, require, suggest
from isaseg.errors import CheckpointError, ConfigError, IsasegError
from isaseg.files import replace_file
from isaseg.models.segmenter import Segmenter
from isaseg.models.tensor_files import reason

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of max|a - b| / max|b|
_ROUNDING = 1e-3  # for a network that amplifies rounding so much that no two programs agree to TOLERANCE

_SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "program": ".pt2"}

# (batch, height, width): multiples of every group size and stride, and multiples of none
_CHECKED = ((1, 64, 64), (2, 97, 131), (1, 128, 192), (3, 65, 40))

_Pair = Annotated[
    tuple[PositiveInt, PositiveInt], Field(description="[height, width], two positive integers")
]
_INPUT = "uint8 RGB (batch, 3, height, width), 0 to 255, neither scaled nor normalised"
_OUTPUT = "float32 (batch, classes, height, width); the class of a pixel is the largest along axis 1"
_ONNX_LIMIT = 2**31 - 2**20  # bytes of a protobuf message, minus some for the graph


def export_checkpoint(cfg: DictConfig) -> None:
    """Export a checkpoint.

    Args:
        cfg: Of conf/export.yaml.

    Raises:
        IsasegError: If a value is wrong, the checkpoint does not load, or a format cannot hold the network.
    """
    path, folder = Path(str(require(cfg, "checkpoint"))), Path(str(require(cfg, "output")))
    formats, size = _formats(cfg), _pair(cfg, "size")
    group_size = None if cfg.group_size is None else _pair(cfg, "group_size")
    check_value("align_corners", cfg.align_corners, bool | None)
    model = load_model(path, group_size=group_size, align_corners=cfg.align_corners)
    targets = {name: folder / f"{path.stem}{_SUFFIXES[name]}" for name in formats}
    for target in targets.values():
        if target.exists() and target.samefile(path):
            raise ConfigError(
                f"expected another folder than that of checkpoint='{path}', which would be replaced; set output=DIR"
            )
    for name, target in targets.items():
        worst = export_model(model, name, target, size)
        megabytes = target.stat().st_size / 1e6
        log.info("%s  %.1f MB  largest relative difference from PyTorch %.1e", target, megabytes, worst)
        if worst > TOLERANCE:
            log.info("(PyTorch's float32 differs as much from its float64: this network amplifies rounding)")


def export_model(model: Model, name: str, target: Path, size: tuple[int, int] = (512, 1024)) -> float:
    """Write a network in one format, unless its logits differ from PyTorch's.

    Args:
        model: The network, in evaluation mode on the CPU.
        name: safetensors, onnx or program.
        target: The file; an older one is replaced once the new one is complete and checked.
        size: (H, W) that the program accepts; ONNX is compared at it too.

    Returns:
        The largest relative difference, max|a - b| / max|b|.

    Raises:
        ConfigError: If the format cannot hold the network, the logits differ, or the file cannot be written.
        CheckpointError: If the network's logits are not finite.
    """
    write = {"safetensors": _write_safetensors, "onnx": _write_onnx, "program": _write_program}[name]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=target.parent) as scratch, torch.no_grad():
            path = Path(scratch) / target.name
            worst = write(model, path, size)
            os.replace(path, target)
        return worst
    except OSError as error:
        raise ConfigError(f"cannot write '{target}': {error}; set output=DIR to another folder") from error
    except IsasegError as error:
        raise type(error)(f"formats={name}: {error}") from error
    except Exception as error:  # exporters raise anything for a network that they cannot trace
        root: BaseException = error
        while root.__cause__ is not None:  # torch.onnx wraps the fault in pages of advice
            root = root.__cause__
        raise ConfigError(
            f"formats={name}: this network cannot be exported: {reason(root)}; choose from "
            f"formats=[{','.join(other for other in _SUFFIXES if other != name)}]"
        ) from error


def _write_safetensors(model: Model, path: Path, size: tuple[int, int]) -> float:
    save_safetensors(model, path)
    return _difference(load_model(path).segmenter, model.segmenter, _CHECKED[:2], tolerance=0.0)


def _write_program(model: Model, path: Path, size: tuple[int, int]) -> float:
    with _quiet():
        program = torch.export.export(model.segmenter.fuse(), (_image(1, *size),))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names the folders of this machine
        with replace_file(path) as file:
            torch.export.save(program, file, extra_files={"isaseg.json": json.dumps(model.description)})
        loaded = torch.export.load(path).module()
    return _difference(loaded, model.segmenter, ((1, *size),))


def _write_onnx(model: Model, path: Path, size: tuple[int, int]) -> float:
    onnx, onnxruntime = _onnx_packages()
    held = sum(t.numel() * t.element_size() for t in model.segmenter.state_dict().values())
    if held > _ONNX_LIMIT:
        raise ConfigError(
            f"expected weights of less than 2 GB, which a single file can hold, got {held} bytes"
        )
    with _quiet():
        program = torch.onnx.export(
            model.segmenter.fuse(),
            (_image(2, 97, 131),),  # needs padding wherever padding can occur, so that the graph has it
            dynamo=True,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            input_names=["image"],
            output_names=["logits"],
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _describe(onnx, proto, model)
    with replace_file(path) as file:
        file.write(proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])

    return _difference(answer, model.segmenter, (*_CHECKED, (1, *size)))


def _describe(onnx: Any, proto: Any, model: Model) -> None:
    """Add what a user needs to know to an ONNX model, and remove what concerns only this machine."""
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # lines of source with their folders
        part.doc_string = ""
    facts = {
        "input": _INPUT,
        "output": _OUTPUT,
        "classes": json.dumps(model.description.get("classes")),
        "palette": json.dumps(model.description.get("palette")),
        "isaseg": json.dumps(model.description),
    }
    onnx.helper.set_model_props(proto, facts)


def _difference(
    answer: Callable[[Tensor], Tensor],
    segmenter: Segmenter,
    shapes: Sequence[tuple[int, int, int]],
    tolerance: float = TOLERANCE,
) -> float:
    """Return the largest relative difference of two networks' logits on noise of these (batch, height, width).

    A deep network, above all with random weights, can amplify the rounding of float32 beyond the tolerance. No two
    programs then agree better than PyTorch agrees with itself in float64, and a few times that difference is allowed.

    Raises:
        ConfigError: If it is above `tolerance`, and above what rounding explains.
        CheckpointError: If the segmenter's logits are not finite.
    """
    worst = 0.0
    for shape in shapes:
        image = _image(*shape)
        wanted, found = segmenter(image), answer(image)
        if not wanted.isfinite().all():
            raise CheckpointError(
                "expected a network of finite logits, got NaN or infinity; use another checkpoint"
            )
        if found.shape != wanted.shape:
            raise ConfigError(f"expected logits {tuple(wanted.shape)}, got {tuple(found.shape)}")
        difference = _relative(found, wanted)
        allowed = tolerance
        if tolerance and not difference <= tolerance:
            rounding = _relative(wanted, copy.deepcopy(segmenter).double()(image))
            allowed = max(tolerance, min(4 * rounding, _ROUNDING))
        if not difference <= allowed:  # true for NaN too
            raise ConfigError(
                f"expected PyTorch's logits within {allowed:.1e} of their largest, got {difference:.1e} for images of "
                f"{shape}; nothing is written. Use another format, and please report it"
            )
        worst = max(worst, difference)
    return worst


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return max|found - wanted| / max|wanted|."""
    scale = wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found - wanted).abs().max() / scale)


def _image(batch: int, height: int, width: int) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=noise)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters, which print what no user can act on, at times the whole graph. Their errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnx_packages() -> tuple[Any, Any]:
    """Return the modules onnx and onnxruntime, which are an extra of this package."""
    try:
        importlib.import_module("onnxscript")  # torch.onnx imports it
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(
            f"expected the packages onnx, onnxscript and onnxruntime, got '{error}'; `pip install 'isaseg[onnx]'`, or "
            "leave onnx out of formats"
        ) from error


def _formats(cfg: DictConfig) -> tuple[str, ...]:
    given = [cfg.formats] if isinstance(cfg.formats, str) else [str(name) for name in cfg.formats or []]
    for name in given:
        if name not in _SUFFIXES:
            raise ConfigError(
                f"expected formats of safetensors, onnx and program, got '{name}'; {suggest(name, _SUFFIXES)}"
                "set e.g. formats=[onnx]"
            )
    if not given:
        raise ConfigError(
            "expected formats of safetensors, onnx and program, got none; set e.g. formats=[onnx]"
        )
    if "onnx" in given:
        _onnx_packages()
    return tuple(dict.fromkeys(given))


def _pair(cfg: DictConfig, key: str) -> tuple[int, int]:
    value: Any = OmegaConf.to_container(cfg[key]) if OmegaConf.is_list(cfg[key]) else cfg[key]
    check_value(key, value, _Pair)
    return value[0], value[1]

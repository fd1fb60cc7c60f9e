"""A network in other formats: the folder that `Segmenter.from_pretrained` reads, and ONNX for images of any size."""

import copy
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt
from torch import Tensor

from isaseg import __version__
from isaseg.checkpoints.loading import Model, load_model
from isaseg.config import check_value, require
from isaseg.errors import CheckpointError, ConfigError
from isaseg.files import replace_file
from isaseg.models.hub import CARD, located
from isaseg.models.segmenter import Segmenter
from isaseg.models.tensor_files import DESCRIPTION, WEIGHTS, reason
from isaseg.runs.run_folder import read_facts, read_metrics

log = logging.getLogger(__name__)

_ONNX = "model.onnx"
TOLERANCE = 1e-5  # of max|a - b| / max|b|
_ROUNDING = 1e-3  # for a network that amplifies rounding so much that no two programs agree to TOLERANCE

# (batch, height, width): multiples of every group size and stride, and multiples of none
_CHECKED = ((1, 64, 64), (2, 97, 131), (1, 128, 192), (3, 65, 40))

_KEYS: dict[str, Any] = {
    "formats": Annotated[
        list[Literal["safetensors", "onnx"]],
        Field(min_length=1, description="a list of safetensors and onnx"),
    ],
    "group_size": Annotated[
        tuple[PositiveInt, PositiveInt] | None,
        Field(description="[P_h, P_w], two positive integers, or null"),
    ],
    "align_corners": bool | None,
    "push_to_hub": Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", description="USER/NAME on the hub, or null"
        ),
    ],
}


def export_checkpoint(cfg: DictConfig) -> None:
    """Export a network into the folder `output`, with a model card, and push it to the hub if `push_to_hub` says so.

    Args:
        cfg: Of conf/export.yaml.

    Raises:
        IsasegError: If a value is wrong, the checkpoint does not load, ONNX cannot hold the network, or the hub refuses.
        OSError: If a file cannot be written.
    """
    path, folder = Path(str(require(cfg, "checkpoint"))), Path(str(require(cfg, "output")))
    values: Any = OmegaConf.to_container(cfg)
    for key, annotation in _KEYS.items():
        check_value(key, values[key], annotation)
    if "onnx" in cfg.formats:
        _onnx_packages()
    if cfg.push_to_hub:
        _check_push(values)
    path = located(path)
    if path.exists() and folder.exists() and folder.samefile(path if path.is_dir() else path.parent):
        raise ConfigError(
            f"expected another folder than that of checkpoint='{path}', got output={folder}; its files might be replaced"
        )
    model = load_model(path, group_size=values["group_size"], align_corners=cfg.align_corners)
    if "onnx" in cfg.formats:
        _check_windows(model.segmenter)
    names = []
    if "safetensors" in cfg.formats:
        model.segmenter.save_pretrained(folder, model_card_kwargs={"run": _run_of(path)})
        names += [WEIGHTS, DESCRIPTION, CARD]
        (folder / _ONNX).unlink(missing_ok=True)  # one of before is of other weights
    if "onnx" in cfg.formats:
        worst = export_onnx(model, folder / _ONNX)
        log.info("largest relative difference from PyTorch %.1e", worst)
        names.append(_ONNX)
    for name in names:
        log.info("%s  %.1f MB", folder / name, (folder / name).stat().st_size / 1e6)
    if cfg.push_to_hub:
        log.info("pushed: %s", _push(folder, names, cfg.push_to_hub))


def _run_of(checkpoint: Path) -> dict[str, Any]:
    """Return what the folder of a run says of the network in one of its checkpoints, as `model_card` takes it."""
    checkpoint = checkpoint.absolute()
    if checkpoint.parent.name != "checkpoints":
        return {}
    run = checkpoint.parents[1]
    metrics = read_metrics(run) or {}
    is_scored = metrics.get("checkpoint") == checkpoint.stem  # else the scores are those of the other one
    return {"facts": {**read_facts(run), "isaseg": __version__}, "metrics": metrics if is_scored else {}}


def _check_push(values: dict[str, Any]) -> None:
    if "safetensors" not in values["formats"]:
        raise ConfigError(
            f"expected safetensors in formats for push_to_hub={values['push_to_hub']}, got formats={values['formats']}"
        )
    if get_token() is None:
        raise ConfigError(
            f"expected a token of the hub for push_to_hub={values['push_to_hub']}, got none; log in with "
            "`hf auth login`, or set HF_TOKEN"
        )


def _push(folder: Path, names: list[str], repository: str) -> str:
    """Upload files of a folder to the hub in one commit, and return its address."""
    files = [CommitOperationAdd(name, folder / name) for name in names]
    try:
        HfApi().create_repo(repository, exist_ok=True)
        done = HfApi().create_commit(repository, files, commit_message=f"isaseg {__version__}")
        return done.commit_url
    except (
        Exception
    ) as error:  # of the system or of an HTTP library, as the version of huggingface_hub has it
        raise ConfigError(
            f"expected the hub to take push_to_hub={repository}, got {reason(error)}; '{folder}' is complete: run the "
            "same command again, or push from a machine that reaches the hub"
        ) from error


@torch.no_grad()
def export_onnx(model: Model, target: Path) -> float:
    """Write a network as ONNX, unless its logits differ from PyTorch's.

    The graph maps `image`, uint8 RGB (B, 3, H, W), to `logits`, float32 (B, K, H, W), as `Segmenter.forward` does.

    Args:
        model: The network, in evaluation mode on the CPU.
        target: The file; an older one is replaced once the new one is complete and checked.

    Returns:
        The largest relative difference, max|a - b| / max|b|.

    Raises:
        ConfigError: If ONNX cannot hold the network, or the logits differ.
        CheckpointError: If the network's logits are not finite.
        OSError: If the file cannot be written.
    """
    onnx, onnxruntime = _onnx_packages()
    _check_windows(model.segmenter)
    try:
        content = _onnx_content(onnx, model)
    except Exception as error:  # the exporter raises anything for a network that it cannot trace
        root: BaseException = error
        while root.__cause__ is not None:  # torch.onnx wraps the fault in pages of advice
            root = root.__cause__
        raise ConfigError(
            f"this network cannot be exported as ONNX: {reason(root)}; set formats=[safetensors]"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def answer(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])

    worst = _difference(answer, model.segmenter)
    with replace_file(target) as file:
        file.write(content)
    return worst


def _check_windows(segmenter: Segmenter) -> None:
    """Refuse Swin: for sizes that vary, torch.export did not simplify the paddings of its windows in ten minutes."""
    if any(hasattr(part, "dynamic_mask") for part in segmenter.backbone.modules()):
        raise ConfigError(
            "expected a network that torch can export for images of any size, got one of timm's Swin backbones; "
            "set formats=[safetensors]"
        )


def _onnx_content(onnx: Any, model: Model) -> bytes:
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every tensor that is merged
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
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # lines of source with the folders of this machine
        part.doc_string = ""
    facts = {
        "input": "uint8 RGB (batch, 3, height, width), 0 to 255, neither scaled nor normalised",
        "output": "float32 (batch, classes, height, width); the class of a pixel is the largest along axis 1",
        "isaseg": json.dumps(model.description),
    }
    onnx.helper.set_model_props(proto, facts)
    content: bytes = proto.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return content


def _difference(answer: Callable[[Tensor], Tensor], segmenter: Segmenter) -> float:
    """Return the largest relative difference of two networks' logits on noise.

    A deep network, above all with random weights, can amplify the rounding of float32 beyond the tolerance. No two
    programs then agree better than PyTorch agrees with itself in float64, and a few times that difference is allowed.

    Raises:
        ConfigError: If it is above the tolerance, and above what rounding explains.
        CheckpointError: If the segmenter's logits are not finite.
    """
    worst = 0.0
    for shape in _CHECKED:
        image = _image(*shape)
        wanted, found = segmenter(image), answer(image)
        if not wanted.isfinite().all():
            raise CheckpointError(
                "expected a network of finite logits, got NaN or infinity; use another checkpoint"
            )
        if found.shape != wanted.shape:
            raise ConfigError(f"expected logits {tuple(wanted.shape)}, got {tuple(found.shape)}")
        difference, allowed = _relative(found, wanted), TOLERANCE
        if not difference <= TOLERANCE:  # true for NaN too
            rounding = _relative(wanted, copy.deepcopy(segmenter).double()(image))
            allowed = max(TOLERANCE, min(4 * rounding, _ROUNDING))
        if not difference <= allowed:
            raise ConfigError(
                f"expected PyTorch's logits within {allowed:.1e} of their largest, got {difference:.1e} for images of "
                f"{shape}; no {_ONNX} is written. Set formats=[safetensors], and please report it"
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

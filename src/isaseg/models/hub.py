"""Networks to share: their folder, here or on the Hugging Face hub, and the model card in it."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from torch import Tensor

from isaseg.console import percent
from isaseg.errors import CheckpointError
from isaseg.files import SUFFIXES
from isaseg.models.description import part_name
from isaseg.models.tensor_files import DESCRIPTION, WEIGHTS, load_file, reason

CARD = "README.md"
_OURS = "library_name: isaseg"
_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_SPLITS = {"val": "validation", "test": "test"}
_CARD = """---
{ours}
pipeline_tag: image-segmentation
tags:
- semantic-segmentation
- interlaced-sparse-self-attention
---

# {title}

A network for semantic segmentation: {backbone} with {attention}, {count} classes. It is one of isaseg, the reference
implementation of interlaced sparse self-attention ([arXiv 1907.12273](https://arxiv.org/abs/1907.12273)).

```python
from isaseg import Segmenter

segmenter = Segmenter.from_pretrained("USER/NAME")  # this repository, or a folder with its files
labels = segmenter(image).argmax(1)  # image: uint8 RGB (B, 3, H, W), of any size, not normalised
```
{trust}
## Training

{training}
## Scores

{scores}
## Classes

{classes}
## Intended use and limits

For research, and for pictures like those it was trained on. It gives every pixel one of the classes above, whatever the
pixel shows. The scores do not say how it does with other cameras, places, seasons or people: test it on pictures of
your own first. It is not meant for decisions on which anybody's safety or rights depend.

## Licence

isaseg, the code, is under the MIT licence. The licence and the limits of the training data apply to these weights, and so
do those of any pretrained weights that the training started from.
"""


def located(path: Path | str, revision: str | None = None, **download: Any) -> Path:
    """Return where a file or folder is: a path as it is, or the folder in the cache for a network of the hub.

    What is here wins over the hub. Of a repository only `model.safetensors` and `config.json` are fetched.

    Args:
        path: A path, or USER/NAME or USER/NAME@REVISION. A name that ends like a file of weights, or begins with a folder
            that is here, is a path.
        revision: A branch, tag or commit of the repository; default: its main branch.
        **download: Of `huggingface_hub.snapshot_download`: token, cache_dir, force_download, local_files_only.

    Raises:
        CheckpointError: If the hub does not give the files and the cache does not have them, or a path has a revision.
    """
    path = Path(path)
    name = _NAME.fullmatch(str(path))
    if name is None or path.exists() or path.suffix in SUFFIXES or Path(path.parts[0]).is_dir():
        if revision is not None:
            raise CheckpointError(
                f"expected a name of the hub, USER/NAME, with {revision=}, got path='{path}'"
            )
        return path
    revision = revision or name["revision"]
    try:
        files = [WEIGHTS, DESCRIPTION]
        folder = snapshot_download(name["repo"], revision=revision, allow_patterns=files, **download)
    except Exception as error:  # of the system, or of the HTTP library of this version of huggingface_hub
        raise CheckpointError(
            f"expected a file, a folder or a network of the hub, got '{path}': there is no such path, and "
            f"{constants.ENDPOINT} does not serve that repository ({reason(error)}). Check the name; log in with "
            "`hf auth login` if it is private; without a network, give a folder, or the cache of a machine that has "
            "fetched it as HF_HOME; for another server, set HF_ENDPOINT"
        ) from error
    return Path(folder)


def read_shared(name: Path | str, revision: str | None, **download: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return description and weights of a shared network; arguments and errors as `Segmenter.from_pretrained`."""
    folder = located(name, revision, **download)
    if not folder.is_dir():
        raise CheckpointError(
            f"expected a folder, or USER/NAME on the hub, got '{folder}'; isaseg.load_segmenter loads files"
        )
    content = load_file(folder)
    return content.get("isaseg"), content["state_dict"]


def check_card(folder: Path) -> None:
    """Check that a README.md in a folder, which a model card is to replace, is one.

    Raises:
        CheckpointError: If it is another text.
    """
    card = folder / CARD
    if card.exists() and _OURS not in card.read_text(errors="replace")[:500]:
        raise CheckpointError(
            f"expected a folder for the network alone, got '{folder}', whose {CARD} is not an isaseg model card; "
            "name another folder"
        )


def model_card(description: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return the README.md of a shared network. What `run` lacks is said to be unknown.

    Args:
        description: Of the network.
        run: What is known of its training: `facts`, as in facts.json, and `metrics`, as in metrics.json.
    """
    facts, metrics = (run.get(key) or {} for key in ("facts", "metrics"))
    backbone, attention = (str(part_name(description[part])) for part in ("backbone", "attention"))
    data = description.get("data")
    targets = (description[part].get("_target_", "") for part in ("backbone", "attention"))
    own = sorted({target.partition(".")[0] for target in targets if target})
    trust = (
        f"\nParts of it are classes of {', '.join(map(_code, own))}, whose code is not here. Install it, and set "
        f"`ISASEG_TRUST={','.join(own)}` if you trust it.\n"
    )
    return _CARD.format(
        ours=_OURS,
        title=f"{attention} on {data or 'an unknown data set'}",
        backbone=_code(backbone),
        attention=_code(attention),
        count=description["num_classes"],
        trust=trust if own else "",
        training=_training(description, facts, metrics),
        scores=_scores(metrics),
        classes=_classes(description, metrics),
    )


def _training(description: Mapping[str, Any], facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    files = facts.get("files") or {}
    counts = [f"{s} {files[s]['count']}" for s in ("train", "val", "test") if "count" in (files.get(s) or ())]
    found = {
        "data set": description.get("data"),
        "images": ", ".join(counts),
        "protocol": description.get("protocol"),
        "steps": metrics.get("step"),
        "seed": facts.get("seed"),
        "command": _public(facts.get("command")),
        "commit of isaseg": facts.get("git_commit"),
        "versions": ", ".join(f"{name} {facts[name]}" for name in ("isaseg", "torch") if facts.get(name)),
        "started": facts.get("started"),
    }
    rows = [f"| {key} | {_code(value)} |\n" for key, value in found.items() if value not in (None, "")]
    unknown = [key for key, value in found.items() if value in (None, "")]
    table = f"| | |\n| --- | --- |\n{''.join(rows)}\n" if rows else ""
    return table + (f"Unknown: {', '.join(unknown)}.\n" if unknown else "")


def _public(command: str | None) -> str:
    """Return a command without the folders that it names on the machine of the training."""
    try:
        words = shlex.split(command or "")
    except ValueError:  # no command of a shell, so not from this project
        words = []
    start = r"(?:file:/|/(?!/)|~|(?:\./)*\.\.[/\\]|[A-Za-z]:\\)"
    quoted, bare = rf"""(["'])\s*{start}(?:(?!\1).)*\1""", rf"(?<=[=,\[:])(\s*){start}[^,\]}}]*"
    return shlex.join(re.sub(bare, r"\1...", re.sub(quoted, r"\1...\1", word)) for word in words)


def _scores(metrics: Mapping[str, Any]) -> str:
    names = ("mIoU", "mAcc", "aAcc")
    rows = [
        f"| {title} | {' | '.join(percent(metrics.get(f'{split}/{name}')) for name in names)} |\n"
        for split, title in _SPLITS.items()
        if metrics.get(f"{split}/mIoU") is not None
    ]
    if not rows:
        return "Unknown.\n"
    chosen = ", which the validation split chose" if metrics["checkpoint"] == "best" else ""
    return (
        f"In per cent, by the run itself, at one scale and without mirror images, of the checkpoint "
        f"{_code(metrics['checkpoint'])}{chosen}, at step {metrics['step']}:\n\n"
        f"| split | {' | '.join(names)} |\n| --- | ---: | ---: | ---: |\n{''.join(rows)}"
    )


def _classes(description: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    names, iou = description.get("classes"), metrics.get("val/IoU") or {}
    if not names:
        return f"{description['num_classes']}, whose names are unknown.\n"
    if not iou:
        return "".join(f"{number}. {_code(name)}\n" for number, name in enumerate(names))
    rows = [f"| {i} | {_code(name)} | {percent(iou.get(name))} |\n" for i, name in enumerate(names)]
    return f"| label | class | IoU %, validation |\n| ---: | --- | ---: |\n{''.join(rows)}"


def _code(value: Any) -> str:
    """Return a value, perhaps of a stranger's file, as text that Markdown shows as it is."""
    return f"`{' '.join(re.sub(r'[`|]', ' ', str(value)).split())}`"

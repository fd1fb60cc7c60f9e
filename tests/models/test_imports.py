"""What can be imported from `isaseg` and `isaseg.models`, and what it costs."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

import isaseg
from isaseg import models

CONF = Path(__file__).parents[2] / "conf"


def answer(code: str) -> Any:
    """Return what `code` prints as JSON in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_importing_the_package_imports_nothing_that_takes_long() -> None:
    loaded = answer("""
        import json, sys
        import isaseg
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
    """)
    assert not {"torch", "numpy", "timm", "lightning", "hydra", "omegaconf", "PIL"} & set(loaded)


def test_the_public_names_need_neither_lightning_nor_hydra() -> None:
    loaded = answer("""
        import json, sys
        from isaseg import InterlacedSparseAttention, Segmenter, load_segmenter
        import isaseg.models
        isaseg.models.context_modules(), isaseg.models.build_segmenter
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
    """)
    assert {"torch", "timm"} <= set(loaded)
    assert not {"lightning", "pytorch_lightning", "hydra", "omegaconf"} & set(loaded)


@pytest.mark.parametrize("package", [isaseg, models])
def test_every_public_name_is_there_and_no_other(package: Any) -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        package.Nothing


def test_context_modules_are_those_of_the_configuration() -> None:
    """Each has a configuration, and can be imported from `isaseg.models`; blocks and heads are none."""
    found = models.context_modules()
    files = [yaml.safe_load(path.read_text()) for path in (CONF / "attention").glob("*.yaml")]
    targets = {held["_target_"] for held in files if "_target_" in held}  # others inherit one
    assert {f"{kind.__module__}.{name}" for name, kind in found.items()} == targets
    for name, kind in found.items():
        assert getattr(models, name) is kind
    assert not {"AttentionBlock", "FusedBlock", "ContextHead", "Backbone"} & set(found)

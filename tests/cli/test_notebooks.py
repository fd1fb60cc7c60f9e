"""The notebooks run as they are, in a real kernel, on generated scenes; and they define nothing and hold no results."""

import ast
import asyncio
import base64
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

from isaseg.cli import notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FORBIDDEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
ALLOWED = {"isaseg", "torch", "matplotlib", "IPython"} | sys.stdlib_module_names


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[ast.Module]:
    return [ast.parse(cell.source) for cell in read(path).cells if cell.cell_type == "code"]


def execute(name: str, kernel: AsyncKernelManager) -> Any:
    """Run a notebook, fail at the first cell that does, and return it with its outputs."""
    document = read(ROOT / "notebooks" / f"{name}.ipynb")
    forget = nbformat.v4.new_code_cell("%reset -f")  # what another notebook has defined
    document.cells.insert(0, forget)
    client = NotebookClient(document, timeout=300, km=kernel)
    client.execute()
    assert client.kc is not None
    client.kc.stop_channels()
    return document


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AsyncKernelManager]]:
    """Give a folder and a kernel that works there, for one notebook after the other."""
    folder = tmp_path_factory.mktemp("notebooks")
    kernel = AsyncKernelManager(kernel_name="python3")
    # IPython writes its history below its folder
    own = {"ISASEG_STEPS": "2", "OMP_NUM_THREADS": "1", "IPYTHONDIR": os.environ["HOME"]}
    asyncio.run(kernel.start_kernel(cwd=str(folder), env={**os.environ, **own}))
    yield folder, kernel
    asyncio.run(kernel.shutdown_kernel(now=True))


def pictures(document: Any) -> list[np.ndarray]:
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    found = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in found]


def said(document: Any) -> str:
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"quickstart", "attention_maps", "compare_runs"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_results(path: Path) -> None:
    document = read(path)
    nbformat.validate(document)
    assert document.metadata.kernelspec.name == "python3"
    for cell in document.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
        assert cell.metadata == {}, "an editor's traces"
    assert document.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_and_imports_isaseg(path: Path) -> None:
    nodes = [node for cell in code(path) for node in ast.walk(cell)]
    assert not [ast.unparse(node) for node in nodes if isinstance(node, FORBIDDEN)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= ALLOWED
    assert any(name.split(".")[0] == "isaseg" for name in imported)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_files_and_notebooks_that_a_notebook_names_exist(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells)
    words = {word.strip("`'\".,;()") for word in text.split()}
    named = {word for word in words if word.endswith((".ipynb", ".py"))}
    assert [word for word in named if not any((ROOT / f / word).is_file() for f in ("", "notebooks"))] == []


@pytest.fixture(scope="module")
def compared(started: tuple[Path, AsyncKernelManager]) -> Any:
    """Run compare_runs where there are no runs, so that it trains two; the other notebooks then find them."""
    return execute("compare_runs", started[1])


def test_runs_are_compared(started: tuple[Path, AsyncKernelManager], compared: Any) -> None:
    folder, document = started[0], compared
    assert written(folder) == {"outputs"}
    text = said(document)
    assert text.count("step 2/2") == 2, "progress"
    assert text.count("finished, step     2") == 2
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    (table,) = [o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    assert "| isa-8x8 | 1 |" in table and "| dense | 1 |" in table
    assert len(pictures(document)) == len(list((folder / "outputs/compare/notebook").glob("*.png"))) == 2


@pytest.mark.usefixtures("compared")
def test_the_quickstart_runs(started: tuple[Path, AsyncKernelManager]) -> None:
    folder, kernel = started
    document = execute("quickstart", kernel)
    (run,) = (folder / "outputs" / "lamps_isa").glob("isa*")
    assert written(folder) == {"outputs"}
    assert (run / "metrics.json").is_file()
    assert (run / "exported" / "model.safetensors").is_file()
    text = said(document)
    assert "128 x128              4.03 G   206.2 G     20.0 MiB   1024 MiB" in text
    assert "largest difference of its logits: 0\n" in text
    shown = pictures(document)
    assert len(shown) == 5  # pattern, curves, two of validation, one of test
    assert all(picture.std() > 10 for picture in shown)


@pytest.mark.usefixtures("compared")
def test_attention_maps_are_shown(started: tuple[Path, AsyncKernelManager]) -> None:
    folder, kernel = started
    document = execute("attention_maps", kernel)
    assert written(folder) == {"outputs"}
    runs = sorted(path.name.split("_")[0] for path in (folder / "outputs" / "lamps_isa").iterdir())
    assert runs == ["dense", "isa-8x8"]
    text = said(document)
    assert "the lamp's share of the picture: 0.8%" in text
    trained, random = pictures(document)
    assert trained.shape[0] > 1.8 * random.shape[0], "four pixels, then two"
    assert trained.shape[1] == random.shape[1]


def test_results_of_a_notebook_in_a_checkout_go_to_the_checkouts_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    assert notebook.outputs() == ROOT / "outputs"
    monkeypatch.chdir(tmp_path)
    assert notebook.outputs() == tmp_path / "outputs"

"""The shape of the code: files and functions that can be read at once, names that mean one thing."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [p for folder in ("src", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize(("files", "limit"), [(SOURCES, 300), (TESTS, 500)], ids=["sources", "tests"])
def test_files_are_short(files: list[Path], limit: int) -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > limit} == {}


def test_functions_are_short() -> None:
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    found[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert found == {}


def test_no_file_has_the_name_of_a_standard_module() -> None:
    assert [str(p.relative_to(ROOT)) for p in SOURCES if p.stem in sys.stdlib_module_names] == []


def test_a_public_name_is_defined_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "src" / "isaseg").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    del places["main"]  # of every command
    assert {name: found for name, found in places.items() if len(found) > 1} == {}

"""Every published configuration composes to the values of its source: none of ours changes without one of theirs."""

import re
from typing import Any

import pytest

from isaseg import config
from isaseg.config.checks import check
from tests.protocols.table import PAGE, page
from tests.protocols.values import composed, files, value

FILES = files()
WITHOUT_SOURCE = {"lip_mmseg"}  # mmsegmentation has no configuration for LIP
ROWS = [(name, row) for name, file in FILES.items() for row in file["rows"]]


@pytest.mark.parametrize(("file", "row"), ROWS, ids=[f"{f}: {row['name']}" for f, row in ROWS])
def test_a_configuration_has_the_values_of_its_source(file: str, row: dict[str, Any]) -> None:
    words = " ".join(row["words"])
    check(composed(words)[0])
    wrong = {}
    for key, (theirs, source, *ours) in row["values"].items():
        wanted, found = ours[0] if ours else theirs, value(words, key)
        if found != wanted:
            wrong[key] = f"{found!r}, expected {wanted!r} ({source})"
        assert not ours or (ours[0] != theirs and ours[1]), f"{key}: a difference needs a reason"
    assert not wrong


def test_every_source_is_a_file_with_a_line() -> None:
    for _, row in ROWS:
        for key, (_, source, *_) in row["values"].items():
            assert re.fullmatch(r"\S+:[1-9]\d*", source), (key, source)


def test_every_recipe_is_held_against_a_source() -> None:
    held = {composed(" ".join(row["words"]))[0].recipe.of for _, row in ROWS}
    assert {path.stem for path in (config.conf_dir() / "recipe").glob("*.yaml")} == held | WITHOUT_SOURCE


def test_the_page_is_of_these_values() -> None:
    assert PAGE.read_text() == page(), "python -m tests.protocols.table"

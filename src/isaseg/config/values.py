"""Names, types and ranges of keys: by pydantic, against annotations, with errors in one sentence."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from inspect import Parameter
from types import NoneType
from typing import Any, get_args

from isaseg.errors import ConfigError

# What a value should be, by the type of pydantic's error, where its message speaks of Python or JSON
_EXPECTED = dict.fromkeys(("needs_python_object", "callable_type"), "be a node with _target_")
_EXPECTED |= {"list_type": "be a list", "tuple_type": "be a list", "dict_type": "be a section of keys"}
_EXPECTED |= {"string_type": "be text", "bool_type": "be true or false", "int_type": "be an integer"}
_EXPECTED |= {"missing": "have a value"}


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Check plain data against an annotation: a type, or `Annotated` with a range and a description for the error.

    A node with `_target_`, or what holds one, may stand anywhere, since only its constructor knows what it becomes.
    Anything may stand where there is no annotation, or one that pydantic cannot check.

    Raises:
        ConfigError: Naming the key, its value and what was expected.
    """
    if annotation is Parameter.empty or isinstance(annotation, str):
        return
    if any("_target_" in node for _, node in nodes(value)):
        return
    # a tenth of a second, which a mistyped key need not wait for
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    # In JSON a list may stand for a tuple and 1 for 1.0; strict, neither "8" nor true may stand for an integer.
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        TypeAdapter(annotation, config=strict).validate_json(json.dumps(value), strict=True)
    except PydanticUserError:
        return
    except ValidationError as error:
        raise ConfigError(
            f"expected {_expected(key, annotation, error.errors(include_url=False))}, got {key}={value}"
        ) from None


def _expected(key: str, annotation: Any, faults: list[Any]) -> str:
    for part in get_args(annotation):
        if text := getattr(part, "description", None):
            return f"{key} to be {text}"
    where = "".join(f"[{part}]" for part in faults[0]["loc"] if isinstance(part, int))
    texts = [_EXPECTED.get(fault["type"]) or fault["msg"].partition(" should ")[2] for fault in faults]
    if NoneType in get_args(annotation):
        texts.append("be null")
    return f"{key}{where} to {' or '.join(dict.fromkeys(texts)).replace(' or be ', ' or ')}"


def check_keys(path: str, node: Any, known: Mapping[str, Any], origin: str, is_open: bool = False) -> None:
    """Check the keys of a node of plain data and their values.

    Args:
        path: The dotted key of the node, "" for a whole configuration.
        node: What should be a mapping.
        known: The annotation of each key it may have.
        origin: Where the keys are from, for people; "" if it is no class or function.
        is_open: Whether it may have other keys too, without an underscore first and not a letter from a known one.

    Raises:
        ConfigError: Naming the dotted key and the nearest known one, or its value and what was expected.
    """
    for name, value in node.items():
        key, name = f"{path}.{name}".lstrip("."), str(name)
        if name in known:
            check_value(key, value, known[name])
        elif not is_open or name.startswith("_") or difflib.get_close_matches(name, known, cutoff=0.92):
            # it may have come with another `_target_`
            near = suggest(name, known)
            where = origin or ("" if near else f"known here: {', '.join(known)}")
            first = f"{key}=0 " if value is None else ""  # Hydra takes null for absent
            removed = f"{first}~{key} removes it" if path and "[" not in path else ""
            more = "; ".join(part for part in (where, removed) if part)
            raise ConfigError(
                f"no configuration key '{key}'; {near}" + (f"({more})" if more else "see --help")
            )


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return "did you mean '...'? " with the nearest candidate, or nothing."""
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'? " if near else ""


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping of plain data, with its dotted key."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, f"{path}[{index}]")

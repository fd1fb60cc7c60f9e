"""The command `isaseg`, also `python -m isaseg.cli`: it runs the command that its first word names."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = ("train", "evaluate", "predict", "export", "data", "compare", "dashboard", "demo")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, 2 if there is none of that name."""
    name, *rest = (sys.argv[1:] if words is None else words) or [""]
    if name in COMMANDS:
        code: int = importlib.import_module(f"isaseg.cli.{name}").main(rest)
        return code
    if name in ("", "-h", "--help"):
        print(_help())
        return 0 if name else 2
    from isaseg.cli.command import report
    from isaseg.config import suggest

    return report(
        f"expected one of {', '.join(COMMANDS)}, got '{name}'; {suggest(name, COMMANDS)}see `isaseg --help`"
    )


def _help() -> str:
    lines = []
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:<10} {(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    return "\n".join(
        ["usage: isaseg COMMAND ...\n", *lines, "\nEach has its own help: isaseg COMMAND --help"]
    )


if __name__ == "__main__":
    sys.exit(main())

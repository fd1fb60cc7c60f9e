"""A hook of MkDocs: the site's changelog, and links that leave docs/ and so lead nowhere on the site."""

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)[^)\s]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page, with the path in place of a link to a file that only the repository has."""
    if page.file.src_uri == "changelog.md":
        markdown = Path(__file__).parents[1].joinpath("CHANGELOG.md").read_text(encoding="utf-8")
        markdown = markdown.replace("](docs/", "](")

    def plain(match: re.Match[str]) -> str:
        text, path = match[1], match[2].removeprefix("../")
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    return OUTSIDE.sub(plain, markdown)

r"""mkdocs hook: where the site and the repository read the same page differently.

    [auto.json](../benchmarks/results/auto.json)  →  auto.json
    | `max\|w\|` |                                →  | `max|w|` |

In the repository links that leave ``docs/`` lead to files (``tests/test_docs.py`` checks that), which the
site does not have; a link to a page that is not there is none of these, and fails the strict build. A bar
within code is escaped in GitHub's tables, and stands for itself in those of Python-Markdown.
"""

import re
from typing import Any

_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)\s]+\)")
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    inside = _OUTSIDE.sub(r"\1", markdown)
    return _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), inside)

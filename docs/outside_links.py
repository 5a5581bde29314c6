"""mkdocs hook: in the site a link that leaves ``docs/`` becomes its text.

    [auto.json](../benchmarks/results/auto.json) -> auto.json

In the repository these links lead to files (``tests/test_docs.py`` checks that), which the site does not
have. A link to a page that is not there is none of these, and fails the strict build.
"""

import re
from typing import Any

_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)\s]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return _OUTSIDE.sub(r"\1", markdown)

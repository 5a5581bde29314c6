"""The report page: what a compression did, as one self-contained HTML page and as JSON.

``collect`` gathers figures into ``data.PageData``; ``charts`` (matplotlib) and ``drawing`` (the graph) make
pictures of them; ``html`` fills templates. Other pages build on ``html.render`` and ``svg.inline``.
"""

from fxcompress.page.data import PageData, Timing
from fxcompress.page.write import page, write_report

__all__ = ["PageData", "Timing", "page", "write_report"]

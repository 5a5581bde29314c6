"""Headless Chromium: measures a page at some widths, and takes the screenshots of the documentation.

A window is never narrower than 500 pixels, so pages stand in frames of the width in question: to media
queries and ``100%`` the frame is the window.

    python -m tests.page.browser report.html docs/images/report.png     # in the repository's root
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)
"""Of a desktop's and of a phone's window, in CSS pixels."""
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--hide-scrollbars",
)
_MEASURE = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const outside = [...page.querySelectorAll("body *")].filter(e =>
      !e.parentElement.closest(".scroll, svg, details:not([open]) > :not(summary)") &&
      e.getBoundingClientRect().right > root.clientWidth + 0.5);
    return {
      width: root.clientWidth, scrolls: root.scrollWidth, body: page.body.scrollWidth,
      outside: outside.map(e => e.outerHTML.slice(0, 80)),
      pictures: [...page.querySelectorAll("svg")].map(e => e.getBoundingClientRect().width),
      figures: [...page.querySelectorAll("figure")].map(e => {
        const box = e.getBoundingClientRect();
        return [box.left, box.top];
      }),
      text: page.body.innerText,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
      background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
  });
  document.body.dataset.found = JSON.stringify(found);
});
"""


def chromium() -> str | None:
    """The browser's path, ``None`` where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def measured(page: str, widths: Sequence[int] = WIDTHS, *options: str) -> list[dict[str, Any]]:
    """Render ``page`` (HTML) at ``widths``: per width how far it reaches, and what sticks out."""
    dumped = _run(_frames(page, widths, 900, _MEASURE), "--dump-dom", *options)
    match = re.search(r'<body[^>]* data-found="([^"]*)"', dumped)
    if match is None:
        raise RuntimeError(f"chromium measured nothing: {dumped[-300:]}")
    found: list[dict[str, Any]] = json.loads(html.unescape(match[1]))
    return found


def screenshot(
    page: str, file: Path, widths: Sequence[int] = WIDTHS, height: int = 1500, *options: str
) -> None:
    """Write a picture of ``page``, one frame beside the other, to ``file`` (PNG)."""
    size = f"--window-size={sum(widths) + 24 * (len(widths) + 1)},{height + 48}"
    _run(_frames(page, widths, height, ""), f"--screenshot={file.resolve()}", size, *options)


def _frames(page: str, widths: Sequence[int], height: int, script: str) -> str:
    source = html.escape(page, quote=True)
    frames = "".join(
        f'<iframe width="{width}" height="{height}" style="border:0;flex:none" srcdoc="{source}"></iframe>'
        for width in widths
    )
    style = "margin:0;padding:24px;display:flex;gap:24px;background:#8a94a0"
    return f'<!doctype html><meta charset="utf-8"><script>{script}</script><body style="{style}">{frames}'


def _run(page: str, *options: str) -> str:
    browser = chromium()
    if browser is None:
        raise RuntimeError(f"no browser: expected one of {', '.join(_NAMES)} on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "frames.html")
        file.write_text(page, encoding="utf-8")
        command = [browser, *_OPTIONS, f"--user-data-dir={folder}/profile", *options, file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"chromium: status {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]))

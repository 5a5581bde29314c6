"""Pages made of templates: everything that is put into one is escaped, but for pictures made here.

A page extends ``base.html.j2``, which has the style (light and dark, desktop, phone and paper);
``macros.html.j2`` has the parts that pages share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from fxcompress.errors import FxcompressError
from fxcompress.page import text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_FILTERS: dict[str, Callable[..., str]] = {
    "amount": text.amount,
    "arrow": text.arrow,
    "change": text.change,
    "choice": text.choice,
    "decibels": text.decibels,
    "exact": text.exact,
    "shape": text.shape,
}


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package.

    Raises:
        FxcompressError: if jinja2 is missing.
    """
    return _environment().get_template(template).render(**values)


def safe(picture: str) -> Markup:
    """An SVG element of ``svg.inline`` or ``drawing.draw``, which templates put in as it is."""
    from markupsafe import Markup

    return Markup(picture)


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise FxcompressError("the page needs jinja2: pip install 'fxcompress[report]'") from error
    made = Environment(
        loader=PackageLoader("fxcompress.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(_FILTERS)
    return made

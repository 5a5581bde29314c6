"""``fxcompress speedup``: remove masked channels from a masked model, or from a model and a mask file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.commands.found import Found, add_json
from fxcompress.commands.options import add_model, check_model, check_target, new_command, positive

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress speedup masked.pt2 --out small.pt2
fxcompress speedup models.resnet:make --weights tuned.safetensors --masks masks.safetensors --out small.pt2
"""


def add_speedup(commands: Commands) -> None:
    """Masks become smaller layers."""
    text = "remove masked channels physically, compare with the masked model, and write the small one"
    parser = new_command(commands, "speedup", text, _EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--masks", type=Path, metavar="FILE", help="mask file (default: the masks of the model itself)"
    )
    parser.add_argument("--round-to", type=positive, metavar="N", help="keep a multiple of N channels")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the small model, a .pt2 file"
    )
    add_json(parser)
    parser.set_defaults(run=run_speedup)


def run_speedup(options: argparse.Namespace) -> Found:
    """Speed up, verified in float64, and save."""
    check_model(options)
    check_target(options.out, ".pt2")

    from fxcompress.commands.models import captured
    from fxcompress.compiler import speedup
    from fxcompress.export.archive import save

    masked = captured(options)
    small = speedup(masked, masks=options.masks, round_to=options.round_to)
    save(small, options.out)
    facts = {"model": options.model, "out": str(options.out), "report": small.report.to_dict()}
    return Found(facts, (str(small.report), f"\nwritten: {options.out}"))

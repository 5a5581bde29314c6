"""``fxcompress explain``: what a config selects in a model, and why the rest is left alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fxcompress.commands.configs import add_config, naming, read_config
from fxcompress.commands.found import Found, add_json
from fxcompress.commands.options import add_model, check_model, new_command

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress explain models.resnet:make --config prune.toml
fxcompress explain small.pt2 --config quantize.yaml --json
"""


def add_explain(commands: Commands) -> None:
    """What a config file does to a model."""
    text = "show which layer gets what from which entry of a config file, and why the others get nothing"
    parser = new_command(commands, "explain", text, _EXAMPLES)
    add_model(parser)
    add_config(parser)
    add_json(parser)
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> Found:
    """Check the config against the model; nothing is captured or changed."""
    check_model(options)
    config_list = read_config(options.config)

    from fxcompress.commands.models import model_of
    from fxcompress.config import explain

    with naming(options.config):
        explained = explain(model_of(options), config_list)
    return Found({"model": options.model, **explained.to_dict()}, (str(explained),))

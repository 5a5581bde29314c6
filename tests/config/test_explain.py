"""The table that says which node got what from which entry."""

from __future__ import annotations

import json

import pytest
from torch import nn

from fxcompress.config.explain import Row, Setting, explain, explain_selection
from fxcompress.config.registry import known_pruners
from fxcompress.config.schema import parse
from fxcompress.config.select import select
from fxcompress.config.targets import Target
from fxcompress.config.values import PerType
from fxcompress.errors import ConfigError

GOLDEN = """\
node   op type       settings                               from
----------------------------------------------------------------------------------------------------
0      Conv2d        pruner=l1                              default
                     sparsity=0.5                           config_list[0]
1      BatchNorm2d   -                                      pruner 'l1' does not support BatchNorm2d
2      ReLU          -                                      excluded by config_list[2]
3      Conv2d        pruner=fpgm                            config_list[1]
                     sparsity=0.5                           config_list[0]
                     quantizer=qat                          default
                     quant_types=weight,input               default
                     quant_bits=weight:4,input:8,output:8   config_list[1]
4      Flatten       -                                      pruner 'l1' does not support Flatten
5      Linear        -                                      config_list[0]: exclude_op_names
config_list[3]: op_names: 'add_1' is no module; it is looked up again in the captured graph
"""


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2)
    )


CONFIG = [
    {"sparsity": 0.5, "exclude_op_names": ["5"]},
    {"op_names": ["3"], "pruner": "fpgm", "quant_bits": {"weight": 4}},
    {"op_types": ["ReLU"], "exclude": True},
    {"op_names": ["add_1"], "quant_bits": 8},
]


def test_the_text_is_a_table_with_nodes_settings_and_origins() -> None:
    assert str(explain(model(), CONFIG)) == GOLDEN.rstrip("\n")


def test_rows_hold_the_values_and_their_entries() -> None:
    rows = {row.name: row for row in explain(model(), CONFIG).rows}
    assert list(rows) == list("012345")
    assert rows["0"] == Row("0", "Conv2d", (Setting("pruner", "l1", None), Setting("sparsity", 0.5, 0)))
    assert [(s.key, s.entry) for s in rows["3"].settings] == [
        ("pruner", 1),
        ("sparsity", 0),
        ("quantizer", None),
        ("quant_types", None),
        ("quant_bits", 1),
    ]
    assert rows["2"] == Row("2", "ReLU", (), "excluded by config_list[2]")
    assert rows["5"].reason == "config_list[0]: exclude_op_names"


def test_to_dict_survives_json() -> None:
    plain = explain(model(), CONFIG).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    rows = plain["rows"]
    assert isinstance(rows, list)
    assert rows[3]["settings"][-1] == {
        "key": "quant_bits",
        "value": {"weight": 4, "input": 8, "output": 8},
        "entry": 1,
    }
    assert plain["deferred"] == [{"entry": 3, "key": "op_names", "value": "add_1"}]


def test_a_captured_graph_is_explained_from_its_selection() -> None:
    targets = [Target("fc", ("Linear",)), Target("add_1", ("add",), functional=True)]
    selection = select(parse([{"op_names": ["add_1"], "quant_bits": 4}]), targets, known_pruners())
    explanation = explain_selection(selection)
    assert [row.reason for row in explanation.rows] == ["in no entry's scope", None]
    assert explanation.deferred == ()


def test_long_names_are_never_cut() -> None:
    name = "encoder." * 40 + "dense"
    selection = select(parse([{"sparsity": 0.5}]), [Target(name, ("Linear",))], known_pruners())
    assert f"{name}  " in str(explain_selection(selection))


def test_a_bad_config_raises_as_compile_would() -> None:
    with pytest.raises(ConfigError, match=r"config_list\[0\]: op_names: '9' matches nothing"):
        explain(model(), [{"op_names": ["9"], "sparsity": 0.5}])
    with pytest.raises(ConfigError, match="pruner: expected one of 'rows', got 'l1'"):
        explain(model(), [{"pruner": "l1", "sparsity": 0.5}], supported={"rows": frozenset({"Linear"})})


def test_explaining_leaves_the_model_as_it_was() -> None:
    net = model()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    explain(net, CONFIG)
    assert net.training
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())


def test_defaults_are_those_of_the_quantizer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    conv, linear = explain(model, [{"quantizer": "weight_only"}]).rows
    assert conv.settings == ()
    assert {s.key: s.value for s in linear.settings} == {
        "quantizer": "weight_only",
        "quant_types": ("weight", "input"),
        "quant_bits": PerType(4, 8, 8),
    }

"""Plans as files."""

import json

import pytest

from fgq.errors import ConfigError
from fgq.plan import Plan, PlannedLayer, read_plan
from fgq.plan.document import plan_of
from fgq.scheme import Codes, WeightScheme

PLAN = Plan(
    layers={
        "conv <1>": PlannedLayer(scheme=WeightScheme(group_size=4), sensitivities={"ternary N=4": 0.5}),
        "tied": PlannedLayer(scheme=WeightScheme(codes=Codes.TIED)),
        "int4": PlannedLayer(scheme=WeightScheme(codes=Codes.INT4)),
        "int8": PlannedLayer(scheme=WeightScheme(codes=Codes.INT8)),
        "float": PlannedLayer(scheme=None),
    },
    measure="relative squared error",
    budgets={"bits": 3.0},
    takes={"bits": 2.9},
)


def test_round_trip(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.to_dict()))
    assert read_plan(path) == PLAN


def test_a_plan_by_hand_needs_the_schemes_alone():
    layers = {"a": {"codes": "ternary", "group_size": 8}, "b": {"codes": "float"}}
    plan = plan_of({"format": "fgq plan 1", "layers": layers})
    assert plan.layers["a"].scheme == WeightScheme(group_size=8)
    assert plan.layers["b"].scheme is None


def layer(**fields):
    return {"format": "fgq plan 1", "layers": {"a": fields}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "plan: found a list, wanted an object"),
        ({}, "plan: found the format None, wanted 'fgq plan 1'"),
        ({"format": "fgq plan 2", "layers": {}}, "found the format 'fgq plan 2'"),
        ({"format": "fgq plan 1"}, "plan: layers: found nothing"),
        ({"format": "fgq plan 1", "layers": {"a": "int8"}}, "plan: layer 'a': found a str"),
        (
            layer(),
            "found the codes None, wanted one of ternary, tied, int4, int8, dual-int4, float",
        ),
        (layer(codes="int2"), "found the codes 'int2'"),
        (layer(codes=["int8"]), "found the codes"),
        (layer(codes="ternary"), "found the group size None, wanted a whole number of at least 1"),
        (layer(codes="tied", group_size=0), "found the group size 0"),
        (layer(codes="int4", group_size=True), "found the group size True"),
        (layer(codes="int8", group_size=64), "found the group size 64, wanted none for int8"),
        (layer(codes="int8", bits=8), "found 'bits', wanted codes, group_size and sensitivities alone"),
        (layer(codes="int8", sensitivities={"int8": "low"}), "sensitivities: 'int8': found 'low'"),
        ({"format": "fgq plan 1", "layers": {}, "budgets": 3}, "plan: budgets: found a int"),
    ],
    ids=map(str, range(15)),
)
def test_refusals(value, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        plan_of(value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"{", "not valid JSON"), (b"\xff", "not valid JSON")]
)
def test_files_that_are_no_plan(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_plan(path)

"""Plans as files."""

import json

import pytest

from fgq.errors import ConfigError
from fgq.plan import Plan, PlannedLayer, read_plan
from fgq.plan.plan_file import plan_of
from fgq.quantization.scheme import Codes, WeightScheme

PLAN = Plan(
    layers={
        "conv <1>": PlannedLayer(scheme=WeightScheme(group_size=4), sensitivities={"ternary N=4": 0.5}),
        "tied": PlannedLayer(scheme=WeightScheme(codes=Codes.TIED)),
        "int4": PlannedLayer(scheme=WeightScheme(codes=Codes.INT4)),
        "int8": PlannedLayer(scheme=WeightScheme(codes=Codes.INT8)),
        "dual": PlannedLayer(scheme=WeightScheme(codes=Codes.DUAL)),
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


def plan_with(**fields):
    return {"format": "fgq plan 1", "layers": {}, **fields}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "plan: found a list, wanted an object"),
        ({}, "plan: format: found nothing, wanted a value"),
        (None, "plan: found nothing, wanted an object"),
        ({"format": "fgq plan 2", "layers": {}}, "format: found 'fgq plan 2', wanted fgq plan 1"),
        ({"format": ["fgq plan 1"], "layers": {}}, r"format: found \['fgq plan 1'\], wanted fgq plan 1"),
        ({"format": "fgq plan 1"}, "plan: layers: found nothing"),
        ({"format": "fgq plan 1", "layers": {"a": "int8"}}, "plan: layers: 'a': found a str"),
        (layer(), "plan: layers: 'a': codes: found nothing, wanted a value"),
        (layer(codes=None), "codes: found None, wanted one of ternary, tied, int4, int8, dual-int4, float"),
        (layer(codes="int2"), "codes: found 'int2'"),
        (layer(codes=["int8"]), r"codes: found \['int8'\]"),
        (layer(codes={}), "codes: found {}"),
        (layer(codes="ternary"), "layers: 'a': found the group size None, wanted a whole number"),
        (layer(codes="tied", group_size=0), "group_size: found 0, wanted a whole number of 1 to"),
        (layer(codes="int4", group_size=True), "group_size: found True"),
        (layer(codes="int4", group_size=2**70), "group_size: found a whole number of 71 bits"),
        (layer(codes="int4", group_size=4.0), "group_size: found 4.0"),
        (layer(codes="int8", group_size=64), "found the group size 64, wanted none for int8"),
        (layer(codes="dual-int4", group_size=4), "found the group size 4, wanted none for dual-int4"),
        (layer(codes="int8", bits=8), "found 'bits', wanted codes, group_size, sensitivities alone"),
        (layer(codes="int8", sensitivities={"int8": "low"}), "sensitivities: 'int8': found 'low', wanted a"),
        (layer(codes="int8", sensitivities={"int8": float("nan")}), "sensitivities: 'int8': found nan"),
        (plan_with(budgets=3), "plan: budgets: found a int, wanted an object"),
        (
            plan_with(takes={"bits": 10**400}),
            "takes: bits: found a whole number of 1329 bits, wanted a finite",
        ),
        (plan_with(takes={"evil": 1.0}), "takes: found 'evil', wanted bits, multiplications, latency alone"),
        (plan_with(budgets={"bits": True}), "budgets: bits: found True"),
        (plan_with(measure=3), "measure: found 3, wanted text"),
        (plan_with(measure="\ud800"), "measure: found '.ud800', wanted text without halves"),
        (plan_with(more=1), "plan: found 'more', wanted format, layers, measure, budgets, takes alone"),
    ],
    ids=str,
)
def test_refusals(value, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "fgq plan 1", "format": 1}', "found the name 'format' twice"),
        (b'{"takes": {"bits": Infinity}}', "not valid JSON .found the number Infinity"),
        (b"[" * 99_999, "not valid JSON .maximum recursion"),
        (b'{"a":' * 99_999, "not valid JSON .maximum recursion"),
        (None, "cannot be read"),
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8 text"),
    ],
)
def test_files_that_are_no_plan(tmp_path, content, message):
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_plan(path)

"""The Pareto study's costs, added up by hand."""

import pytest

from fgq.eval.pareto.costs import costs_of
from fgq.report import LayerReport


def layer(scheme, activation_bits, bits_per_weight, removed=0.0, multiplications=1000):
    return LayerReport(
        name="conv", operator="Conv", shape=(10, 5, 1, 1), scheme=scheme, activations="", reason="",
        multiplications=multiplications, activation_bits=activation_bits, bits_per_weight=bits_per_weight,
        multiplications_removed=removed,
    )  # fmt: skip


def costs(*layers, converted=True):
    found = costs_of(layers, converted=converted)
    return found.quadratic, found.linear, found.memory, found.multiplications, found.additions


@pytest.mark.parametrize(
    ("described", "wanted"),
    [
        (layer("int8", 8, 8.0), (64e3, 8e3, 400, 1000, 1000)),
        (layer("int4 per filter", 4, 4.5), (16e3, 4e3, 225, 1000, 1000)),
        (layer("int4 per filter", 8, 4.5), (32e3, 8e3, 225, 1000, 1000)),
        (layer("ternary N=4", 8, 3.6, 0.75), (16e3, 8e3, 180, 250, 1250)),
        (layer("ternary N=4", 4, 3.6, 0.75), (8e3, 4e3, 180, 250, 1250)),
        (layer("tied N=64", 8, 4.125, 0.9), (32e3, 8e3, 206.25, 100, 2100)),
        (layer("int8", None, 8.0), (256e3, 32e3, 400, 1000, 1000)),  # activations stay float
        (layer("float", None, 32.0), (1024e3, 32e3, 1600, 1000, 1000)),
    ],
)  # fmt: skip
def test_one_layer(described, wanted):
    # Sums of a few float64 products.
    assert costs(described) == pytest.approx(wanted, rel=1e-12)


def test_layers_add_up():
    one, other = layer("int8", 8, 8.0), layer("ternary N=4", 4, 3.6, 0.75)
    wanted = [a + b for a, b in zip(costs(one), costs(other), strict=True)]
    assert costs(one, other) == pytest.approx(wanted, rel=1e-12)
    assert costs() == (0, 0, 0, 0, 0)


def test_a_float_model_costs_what_it_is_and_not_what_it_would_become():
    planned = layer("ternary N=4", 8, 3.6, 0.0)
    assert costs(planned, converted=False) == (1024e3, 32e3, 1600, 1000, 1000)

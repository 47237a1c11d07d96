"""Sentences and suggestions, for findings made up to call for them."""

import math
import re
import shlex
from dataclasses import replace

import pytest

from fgq import ConversionConfig, cli
from fgq.eval.report.advice import costliest, loses, suggestions, summary, total_sensitivity
from fgq.eval.report.quality import Measure, Quality
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.statistics import Estimate


def with_difference(findings, value, low, high, name="top1"):
    first = Measure(
        name=name,
        before=Estimate(0.9, 0.8, 0.95),
        after=Estimate(0.9 + value, 0.7, 0.95),
        difference=Estimate(value, low, high),
    )
    return replace(findings, quality=Quality(samples=1234, measures=(first,)))


def with_sensitivities(findings, *values, group_size=64):
    """Return findings of as many ternary layers, of equal size."""
    layer = next(each for each in findings.layers if each.report.scheme == "ternary N=4")
    scheme = WeightScheme(codes=Codes.TERNARY, group_size=group_size)
    layers = tuple(
        replace(
            layer,
            report=replace(layer.report, name=f"l.{index}"),
            sensitivity=value,
            scheme=scheme,
            memory_bits=2 + 8 / group_size,
        )
        for index, value in enumerate(values)
    )
    report = replace(findings.report, layers=tuple(each.report for each in layers))
    return replace(findings, layers=layers, report=report)


@pytest.fixture
def worse(findings):
    return with_difference(findings, -0.05, -0.06, -0.04)


def options(findings):
    return [each.options for each in suggestions(findings)]


class TestSummary:
    def test_beyond_chance(self, worse):
        assert summary(worse)[0] == (
            "The converted model reaches 85.00 % top-1 accuracy on 1,234 samples, the float model 90.00 %: "
            "5.00 points less, which is beyond chance."
        )

    def test_by_chance(self, findings):
        text = summary(with_difference(findings, -0.05, -0.1, 0.0))[0]
        assert text.endswith("that difference may be chance, as its 95 % interval holds zero.")

    def test_better_and_in_another_unit(self, findings):
        text = summary(with_difference(findings, 0.05, 0.01, 0.09, "reciprocal_rank"))[0]
        assert "reaches 0.950 mean reciprocal rank on 1,234 samples" in text
        assert text.endswith("the float model 0.900: 0.050 more, which is beyond chance.")

    def test_without_labels(self, findings):
        measures = (Measure(name="agreement", before=None, after=Estimate(0.5, 0.4, 0.6), difference=None),)
        text = summary(replace(findings, quality=Quality(samples=2, measures=measures)))[0]
        assert text.endswith("on 2 samples: same largest entry as the float model 50.00 %.")

    def test_a_problem(self, findings):
        problem = replace(findings, quality=Quality(samples=0, measures=(), problem="found NaN"))
        assert summary(problem)[0] == "Its quality could not be measured: found NaN."

    def test_layers(self, findings):
        text = " ".join(summary(replace(with_sensitivities(findings, 1.0, 3.0, 0.0, 4.0), whole=8.0)))
        assert "4 of 4 layers are quantized." in text
        assert "most are l.3 (50 %), l.1 (38 %), l.0 (12 %):" in text
        assert "add" not in text.split("add up to.")[1]

    def test_layers_that_make_up_for_others(self, findings):
        text = summary(replace(with_sensitivities(findings, 1.0, 3.0), whole=1.5))[-1]
        assert text.startswith("All layers together change it less (1.5) than each alone adds up to (4).")

    def test_changes_that_are_no_numbers_are_the_worst(self, worse):
        some = with_sensitivities(worse, 4.0, math.nan, 1.0, math.inf)
        assert [layer.report.name for layer in costliest(some)] == ["l.1", "l.3", "l.0", "l.2"]
        assert total_sensitivity(some) == 5.0
        assert "most are l.1 (not finite), l.3 (not finite), l.0 (80 %):" in " ".join(summary(some))
        assert any(text.startswith("--exclude") and "l\\.1" in text for text in options(some))

    @pytest.mark.parametrize("values", [(0.0, 0.0), (None, None)])
    def test_nothing_known(self, findings, values):
        some = with_sensitivities(findings, *values)
        assert costliest(some) == []
        assert total_sensitivity(some) == 0.0
        assert "most" not in " ".join(summary(some)[1:])
        assert suggestions(with_difference(some, -0.05, -0.06, -0.04))

    def test_a_file_that_grew(self, findings):
        grown = replace(findings, report=replace(findings.report, float_bytes=100, converted_bytes=150))
        assert summary(grown)[1].startswith("Its file is 1.5 times larger, at ")

    def test_a_file_of_embeddings(self, findings):
        report = replace(findings.report, converted_bytes=1000)
        assert "are 90 % of the file." in summary(replace(findings, report=report, float_bytes=900))[1]
        assert "of the file" not in summary(replace(findings, report=report, float_bytes=200))[1]

    def test_one_layer(self, findings):
        assert summary(with_sensitivities(findings, 2.0))[3] == "The output changes through l.0 alone."


class TestSuggestions:
    def test_none_without_a_loss(self, findings):
        assert options(with_difference(findings, -0.01, -0.03, 0.01)) == []
        assert not loses(with_difference(findings, 0.05, 0.01, 0.09))

    def test_where_all_layers_are_alike(self, worse):
        some = with_sensitivities(worse, *[1.0] * 20)
        assert options(some) == [
            "--target-bits 3 --group-size 64",
            "--weights tied",
            "--group-size 16",
            "--recipe calibrated",
        ]

    def test_a_layer_that_stands_out(self, worse):
        some = with_sensitivities(worse, 1.0, 9.0, 1.0)
        (exclude,) = (text for text in options(some) if text.startswith("--exclude"))
        pattern = shlex.split(exclude)[1]
        assert [bool(re.search(pattern, name)) for name in ("l.1", "l.0", "lx1", "l.10")] == [True] + [
            False
        ] * 3

    def test_small_groups_stay(self, worse):
        assert options(with_sensitivities(worse, *[1.0] * 20, group_size=4)) == [
            "--target-bits 5 --group-size 4",
            "--weights tied",
            "--recipe calibrated",
        ]

    def test_four_bit_activations(self, worse):
        layers = [replace(each, report=replace(each.report, activations="int4")) for each in worse.layers]
        assert "--activations int8" in options(replace(worse, layers=tuple(layers)))

    def test_eight_bits_everywhere(self, worse):
        layers = [each for each in worse.layers if each.report.scheme in ("int8", "float")]
        assert options(replace(worse, layers=tuple(layers))) == []

    def test_every_option_exists(self, worse, monkeypatch):
        """The command line reads each of them, and a conversion takes it."""
        import typer

        convert = typer.main.get_command(cli.app).commands["convert"]
        some = with_sensitivities(worse, 1.0, 9.0, 1.0)
        layers = [replace(each, report=replace(each.report, activations="int4")) for each in some.layers]
        found = options(replace(some, layers=tuple(layers)))
        assert len(found) == 6
        for text in found:
            context = convert.make_context("convert", ["m.onnx", *shlex.split(text)])
            known = ConversionConfig.__dataclass_fields__
            given = {
                key: value
                for key, value in context.params.items()
                if key in known and value not in (None, False)
            }
            assert given
            ConversionConfig(**given)

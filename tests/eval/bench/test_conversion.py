"""The benchmark of a conversion: an encoder that converts, and figures that add up."""

import pytest

from fgq.config import ConversionConfig
from fgq.eval.bench import conversion


def test_measures_a_conversion(monkeypatch):
    monkeypatch.setattr(conversion, "CHANNELS", 48)
    monkeypatch.setattr(conversion, "HIDDEN", 96)
    monkeypatch.setattr(conversion, "VOCABULARY", 50)
    stages = []
    measured = conversion.measure(
        2, 12, ConversionConfig(group_size=16), lambda stage, done, total: stages.append(stage)
    )
    linear = 2 * (4 * 48 * (48 + 1) + 96 * (48 + 1) + 48 * (96 + 1))
    norms, scalars = 5 * 2 * 48, 4
    assert measured.weights == 50 * 48 + linear + norms + scalars
    assert list(measured.stages) == list(dict.fromkeys(stages[1:]))
    assert "quantize weights" in measured.stages
    assert sum(measured.stages.values()) == pytest.approx(measured.seconds, rel=0.2)
    assert measured.peak_bytes is None or measured.peak_bytes > 1e7
    columns, rows = conversion.table(measured)
    assert {len(row) for row in rows} == {len(columns)}
    assert measured.to_dict()["samples"] == 12

from pathlib import Path

from fgq.config import ConversionConfig
from fgq.conversion.context import Context, silent, unfinished_folder


def test_a_stage_reports_under_its_name():
    told = []
    context = Context(config=ConversionConfig(), progress=lambda *progress: told.append(progress))
    context.stage("calibrate")(3, None)
    assert told == [("calibrate", 3, None)]


def test_nothing_is_told_where_nobody_asks():
    context = Context(config=ConversionConfig())
    assert context.progress is silent
    assert context.stage("read")(0, None) is None


def test_unfinished_layers_lie_beside_the_output():
    assert unfinished_folder("folder/out.onnx") == Path("folder/out.onnx.unfinished")

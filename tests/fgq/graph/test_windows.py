"""Padding of convolutions and poolings against onnxruntime's."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.errors import ModelError
from fgq.graph.windows import may_crop, padding, pads_of, read_window, spans


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "", "NOTSET"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
def test_padding_is_onnxruntimes(make_model, run, mode, stride, dilation):
    """A window of ones over an image of ones counts the pixels that it covers."""
    if mode.startswith("SAME"):
        dilation = 1  # onnxruntime refuses others
    text = f"""(float[1,1,H,W] x) => (float y) {{
        y = Conv<auto_pad="{mode}", strides=[{stride},2], dilations=[{dilation},1]{
        ", pads=[1,0,2,1]" if mode in ("", "NOTSET") else ""
    }>(x, w)
    }}"""
    model = make_model(text, {"w": np.ones((1, 1, 4, 3), np.float32)})
    (node,) = ir.from_proto(model).graph
    for image in ((7, 8), (10, 5), (12, 12)):
        span = spans((4, 3), (dilation, 1))
        before, after = pads_of(node, image, span, (stride, 2))
        margin = list(zip(before, after, strict=True))
        padded = np.pad(np.ones(image, np.float32), margin)
        seen = np.lib.stride_tricks.sliding_window_view(padded, span)[::stride, ::2, ::dilation]
        (found,) = run(model, {"x": np.ones((1, 1, *image), np.float32)})
        np.testing.assert_array_equal(found[0, 0], seen.sum(axis=(2, 3)))
        window = read_window(node, (4, 3), image)
        assert (window.pads, window.strides, window.dilations) == (
            (*before, *after), (stride, 2), (dilation, 1)
        )  # fmt: skip
    assert (read_window(node, (4, 3), None) is None) == mode.startswith("SAME")


def test_an_unknown_padding_is_refused():
    with pytest.raises(ModelError, match="auto_pad: found 'SAME', wanted NOTSET, VALID, SAME_UPPER"):
        padding("SAME", [0, 0], [5], [3], [1])


@pytest.mark.parametrize(("mode", "stride", "crops"), [("SAME_LOWER", 5, True), ("SAME_UPPER", 4, False),
                                                       ("VALID", 5, False)])  # fmt: skip
def test_windows_shorter_than_their_strides(mode, stride, crops):
    node = ir.node("MaxPool", [ir.Value(name="x")], {"auto_pad": mode, "strides": [stride, 1]})
    assert may_crop(node, (3, 3)) == crops

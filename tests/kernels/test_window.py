import pytest

from fgq.errors import KernelError
from fgq.kernels.window import Window


def test_output_size_counts_the_places_of_the_kernel():
    for size in range(1, 9):
        for taps, stride, before, after, dilation in [(1, 1, 0, 0, 1), (3, 2, 1, 0, 1), (2, 3, 0, 2, 2)]:
            window = Window(strides=(stride, 1), pads=(before, 0, after, 0), dilations=(dilation, 1))
            places = range(-before, size + after - (taps - 1) * dilation, stride)
            if len(places):
                assert window.output_size(size, 4, (taps, 4)) == (len(places), 1)
            else:
                with pytest.raises(KernelError, match="image"):
                    window.output_size(size, 4, (taps, 4))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strides", (0, 1)),
        ("strides", (1,)),
        ("pads", (0, 0, -1, 0)),
        ("pads", (1, 1)),
        ("dilations", (1, 0)),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(KernelError, match=field):
        Window(**{field: value})


def test_no_conv_group_is_refused():
    with pytest.raises(KernelError, match="groups"):
        Window(groups=0)

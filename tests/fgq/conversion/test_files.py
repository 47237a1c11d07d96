"""Running a model on files, exporting to a file, and what must not be overwritten."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from fgq import ConversionConfig, convert, convert_file
from fgq.conversion.files import export_file, refuse_same_file, run_file
from fgq.errors import DataError, ModelError, OutputError

TEXT = """(float[N,3,8,8] x, float[4] s) => (float y, float z) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, v)
    p = GlobalAveragePool(c)
    q = Flatten(p)
    z = Gemm(q, u)
    y = Add(z, s)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(8, 4)}
FEED = {"x": normal(5, 3, 8, 8), "s": normal(4)}


@pytest.fixture
def folder(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model(TEXT, WEIGHTS)
    onnx.save(model, "float.onnx")
    onnx.save(convert(model, calibration=[FEED], group_size=4).model, "converted.onnx")
    np.savez("x.npz", **FEED)
    return tmp_path


def outputs(path="y.npz"):
    with np.load(path) as found:
        return dict(found)


class TestRun:
    @pytest.mark.parametrize(
        ("name", "engine"),
        [("float.onnx", "onnxruntime"), ("converted.onnx", "onnxruntime"), ("converted.onnx", "fgq")],
    )
    def test_equals_onnxruntime(self, folder, run, name, engine):
        shapes = run_file(name, "x.npz", "y.npz", engine=engine).shapes
        assert shapes == {"y": [5, 4], "z": [5, 4]}
        for found, expected in zip(outputs().values(), run(name, FEED), strict=True):
            # Floats in float operators and after them: engines may round the last step differently.
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kernels", ["auto", "multiplication-free", "reference"])
    def test_kernels(self, folder, kernels):
        run_file("converted.onnx", "x.npz", "y.npz", kernels=kernels)
        run_file("converted.onnx", "x.npz", "auto.npz")
        for one, other in zip(outputs().values(), outputs("auto.npz").values(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_float_model_is_for_onnxruntime(self, folder):
        with pytest.raises(ModelError, match=r"3 float layers .*fgq convert"):
            run_file("float.onnx", "x.npz", "y.npz")
        assert not Path("y.npz").exists()

    def test_profile(self, folder):
        done = run_file("converted.onnx", "x.npz", "y.npz", profile=True, threads=1, memory="compact")
        assert len(done.times) > 3
        assert all(time.seconds > 0 and time.output_bytes > 0 for time in done.times)
        assert sum(time.step.weight_bytes > 0 for time in done.times) == 3

    def test_same_bytes_twice(self, folder):
        for name in ("a.npz", "b.npz"):
            run_file("converted.onnx", "x.npz", name)
        assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()

    def test_written_as_named(self, folder):
        """NumPy's own functions would add .npz."""
        run_file("converted.onnx", "x.npz", "result")
        assert set(outputs("result")) == {"y", "z"}

    def test_scalars_and_other_types(self, make_model, folder):
        body = "y = ReduceSum<keepdims=0>(x)\nn = Shape(x)\nb = Equal(y, y)"
        onnx.save(make_model(f"(float[N] x) => (float y, int64 n, bool b) {{ {body} }}"), "m.onnx")
        np.savez("in.npz", x=np.ones(3, np.float32))
        assert run_file("m.onnx", "in.npz", "y.npz").shapes == {"y": [], "n": [1], "b": []}
        found = outputs()
        assert (found["y"], found["n"].tolist(), found["b"]) == (3.0, [3], True)

    def test_rank_zero_is_not_rank_one(self, folder):
        np.savez("bad.npz", x=FEED["x"], s=np.float32(1))
        with pytest.raises(DataError, match=r"bad\.npz: found s: float32\[\], wanted s: float32\[4\]"):
            run_file("float.onnx", "bad.npz", "y.npz")


class TestExport:
    @pytest.mark.parametrize("form", ["int8", "inlined", "float"])
    def test_computes_the_same(self, folder, run, form):
        exported = export_file("converted.onnx", "out.onnx", form)
        assert exported == (Path("out.onnx").stat().st_size, "1.17")
        assert not onnx.load("out.onnx").functions
        before, after = run("converted.onnx", FEED), run("out.onnx", FEED)
        for one, other in zip(before, after, strict=True):
            if form == "float":  # without the rounding and clipping of activations: 32 dB when written
                assert ((one - other) ** 2).mean() < 0.003 * (one**2).mean()
            else:
                np.testing.assert_array_equal(one, other)

    def test_a_float_model_is_for_onnxruntime(self, folder):
        with pytest.raises(ModelError, match=r"3 float layers .*fgq convert"):
            run_file("float.onnx", "x.npz", "y.npz")
        assert not Path("y.npz").exists()

    def test_profile(self, folder):
        done = run_file("converted.onnx", "x.npz", "y.npz", profile=True, threads=1, memory="compact")
        assert len(done.times) > 3
        assert all(time.seconds > 0 and time.output_bytes > 0 for time in done.times)
        assert sum(time.step.weight_bytes > 0 for time in done.times) == 3

    def test_same_bytes_twice(self, folder):
        for name in ("a.onnx", "b.onnx"):
            export_file("converted.onnx", name, "int8")
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


class TestSameFile:
    def test_external_data_of_the_model_are_not_written_over(self, folder):
        model = onnx.load("float.onnx")
        onnx.save(model, "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
        before = Path("big.data").read_bytes()
        with pytest.raises(OutputError, match=r"found the same file as .*big\.data"):
            convert_file("big.onnx", "big.data", ConversionConfig(activations="none"))
        assert Path("big.data").read_bytes() == before

    def test_other_files(self, folder):
        refuse_same_file("float.onnx", "converted.onnx")
        refuse_same_file("float.onnx", "new.onnx")
        refuse_same_file("gone.onnx", "new.onnx")

    @pytest.mark.parametrize(
        "other",
        ["float.onnx", "./float.onnx", "deeper/../float.onnx", "symlink", "hardlink", "gone"],
    )
    def test_the_same(self, folder, other):
        Path("deeper").mkdir()
        os.symlink("float.onnx", "symlink")
        os.link("float.onnx", "hardlink")
        source = "gone" if other == "gone" else "float.onnx"
        with pytest.raises(
            OutputError, match=f"found the same file as {source}, wanted another one to write"
        ):
            refuse_same_file(source, folder / other)

    def test_a_ring_of_links(self, folder):
        os.symlink("ring", "ring")
        refuse_same_file("float.onnx", "ring")
        with pytest.raises(DataError, match="ring"):
            run_file("float.onnx", "ring", "y.npz")

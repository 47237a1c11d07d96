"""Calibration data: what is accepted, how it is cut into batches, and how every bad file is refused."""

import tracemalloc

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image

from fgq.data.images import read_image
from fgq.data.inputs import InputSpec, has_open_batch
from fgq.data.sample_files import load_samples
from fgq.data.samples import as_samples
from fgq.data.sources import as_batches
from fgq.errors import ConfigError, DataError


def spec(name="x", dtype=np.float32, shape=(None, 3)):
    return InputSpec(name=name, dtype=np.dtype(dtype), shape=shape)


X = [spec()]
TOKENS = [spec("ids", np.int64, ("batch", "length")), spec("mask", np.int64, ("batch", "length"))]
PICTURE = [spec("image", np.float32, ("batch", 3, 32, 32))]


def rows(count, start=0):
    return np.arange(start * 3, (start + count) * 3, dtype=np.float32).reshape(count, 3)


def joined(batches, name="x"):
    return np.concatenate([feed[name] for feed in batches])


def save_image(path, size=(40, 36), seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


class TestNpz:
    def test_one_file(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=rows(5), labels=np.array([3, 0, 1, 1, 2], np.int32))
        samples = load_samples(tmp_path / "a.npz", X)
        assert len(samples) == 5
        assert [len(feed["x"]) for feed in samples.batches(2)] == [2, 2, 1]
        for _ in range(2):  # again, from the start
            np.testing.assert_array_equal(joined(samples.batches(2)), rows(5))
        np.testing.assert_array_equal(samples.labels, [3, 0, 1, 1, 2])

    def test_a_folder_of_files_is_read_in_order_across_borders(self, tmp_path):
        for number, count in enumerate((3, 1, 4)):
            start = sum((3, 1, 4)[:number])
            np.savez_compressed(
                tmp_path / f"{number}.npz", x=rows(count, start), labels=np.arange(count) + start
            )
        (tmp_path / ".hidden").touch()
        samples = load_samples(str(tmp_path), X)
        assert [len(feed["x"]) for feed in samples.batches(3)] == [3, 3, 2]
        np.testing.assert_array_equal(joined(samples.batches(3)), rows(8))
        np.testing.assert_array_equal(samples.labels, np.arange(8))

    def test_a_batch_never_mixes_lengths(self, tmp_path):
        for length in (4, 6):
            ids = np.full((3, length), length)
            np.savez(tmp_path / f"{length}.npz", ids=ids, mask=np.ones_like(ids))
        samples = load_samples(tmp_path, TOKENS)
        assert samples.labels is None
        assert [feed["ids"].shape for feed in samples.batches(2)] == [(2, 4), (1, 4), (2, 6), (1, 6)]

    def test_an_input_called_labels_is_an_input(self, tmp_path):
        np.savez(tmp_path / "a.npz", labels=rows(2))
        samples = load_samples(tmp_path / "a.npz", [spec("labels")])
        assert samples.labels is None
        np.testing.assert_array_equal(joined(samples.batches(9), "labels"), rows(2))

    def test_memory_holds_one_file_at_a_time(self, tmp_path):
        for number in range(6):
            np.savez(tmp_path / f"{number}.npz", x=np.zeros((50_000, 3), np.float32))  # 600 kB each
        samples = load_samples(tmp_path, X)
        tracemalloc.start()
        assert sum(len(feed["x"]) for feed in samples.batches(1000)) == 300_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_200_000  # the old and the new file, their bytes on the way in, a batch

    @pytest.mark.parametrize(
        ("arrays", "inputs", "message"),
        [
            ({"y": rows(2)}, X, r"found the keys \['y'\], wanted \['x'\]"),
            ({"arr_0": rows(2)}, X, r"found the keys \['arr_0'\], wanted \['x'\]"),
            ({"x": rows(2), "z": rows(2)}, X, r"found the keys \['x', 'z'\], wanted \['x'\]"),
            (
                {"x": rows(2).astype(np.float64)},
                X,
                r"float64\[2, 3\].*x: float32\[samples, 3\]; data are not",
            ),
            ({"x": rows(2).astype(np.uint8)}, X, r"uint8\[2, 3\], wanted x: float32"),
            ({"x": rows(2).astype(">f4")}, X, r">f4\[2, 3\]"),
            ({"x": rows(2)[:, :2]}, X, r"found x: float32\[2, 2\], wanted x: float32\[samples, 3\]$"),
            ({"x": rows(2)[0]}, X, r"found x: float32\[3\]"),
            ({"x": np.float32(1)}, X, r"found x: float32\[\]"),
            ({"x": rows(2)}, [spec(shape=())], r"found x: float32\[2, 3\], wanted x: float32\[\]"),
            ({"x": rows(0)}, X, "found no samples"),
            ({"x": rows(2), "labels": np.zeros(3, int)}, X, "unequal numbers of samples"),
            ({"x": rows(2), "labels": np.zeros(2)}, X, r"labels float64\[2\], wanted one whole number"),
            ({"x": rows(2), "labels": np.zeros((2, 1), int)}, X, r"labels int64\[2, 1\]"),
            ({"x": rows(2), "labels": np.int64(1)}, X, r"labels int64\[\]"),
            ({"x": rows(2), "labels": np.array([1, -1])}, X, "found the label -1"),
            ({"x": np.array([[1, "a", 2]], object)}, X, "Python objects in 'x'"),
            ({"ids": np.ones((2, 4), int), "mask": np.ones((3, 4), int)}, TOKENS, "unequal numbers"),
        ],
    )
    def test_files_that_do_not_fit(self, tmp_path, arrays, inputs, message):
        path = tmp_path / "a.npz"
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message) as caught:
            load_samples(path, inputs)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("bad", "count"), [(np.nan, 1), (np.inf, 2)])
    def test_values_that_are_not_finite(self, tmp_path, bad, count):
        values = rows(4)
        values.flat[:count] = bad
        np.savez(tmp_path / "a.npz", x=values)
        with pytest.raises(DataError, match=f"a.npz: found {count} NaN or infinite values in 'x'"):
            list(load_samples(tmp_path / "a.npz", X).batches(2))

    def test_labels_in_some_files_only(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=rows(2), labels=np.arange(2))
        np.savez(tmp_path / "b.npz", x=rows(2))
        np.savez(tmp_path / "c.npz", x=rows(2), labels=np.arange(2))
        with pytest.raises(DataError, match=r"b.npz: found no labels but some in .*a.npz"):
            load_samples(tmp_path, X)
        (tmp_path / "a.npz").unlink()
        with pytest.raises(DataError, match=r"c.npz: found labels but none in .*b.npz"):
            load_samples(tmp_path, X)

    def test_missing_stray_and_empty(self, tmp_path):
        with pytest.raises(DataError, match=r"nothing.npz: found no such file"):
            load_samples(tmp_path / "nothing.npz", X)
        with pytest.raises(DataError, match="found an empty folder"):
            load_samples(tmp_path, X)
        np.savez(tmp_path / "a.npz", x=rows(2))
        (tmp_path / "notes.txt").touch()
        with pytest.raises(DataError, match=r"notes.txt: found another file"):
            load_samples(tmp_path, X)


class TestImages:
    def test_class_folders_give_labels_in_order_of_name(self, tmp_path):
        for seed, place in enumerate(("dog/1.png", "cat/b.png", "cat/a.jpg", "owl/x.png")):
            save_image(tmp_path / place, seed=seed)
        samples = load_samples(tmp_path, PICTURE)
        np.testing.assert_array_equal(samples.labels, [0, 0, 1, 2])
        (feed,) = samples.batches(10)
        assert feed["image"].shape == (4, 3, 32, 32)
        np.testing.assert_array_equal(feed["image"][2], read_image(tmp_path / "dog/1.png", 32, 32))

    def test_numbers_as_folder_names_are_the_labels(self, tmp_path):
        for place in ("10/a.png", "9/a.png", "007/a.png"):
            save_image(tmp_path / place)
        np.testing.assert_array_equal(load_samples(tmp_path, PICTURE).labels, [7, 10, 9])

    def test_a_flat_folder_has_no_labels(self, tmp_path):
        for name in ("b.png", "a.PNG", "c.bmp"):
            save_image(tmp_path / name)
        samples = load_samples(tmp_path, PICTURE)
        assert samples.labels is None
        assert [len(feed["image"]) for feed in samples.batches(2)] == [2, 1]

    def test_images_are_decoded_batch_by_batch(self, tmp_path):
        save_image(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"not an image")
        batches = load_samples(tmp_path, PICTURE).batches(1)
        next(batches)
        with pytest.raises(DataError, match=r"b.png: found no readable image"):
            next(batches)

    @pytest.mark.parametrize(
        "inputs",
        [
            X,
            TOKENS,
            [spec("image", np.float32, (1, 3, "height", "width"))],
            [spec("image", np.float32, (1, 1, 28, 28))],
            [spec("image", np.float32, (1, 224, 224, 3))],
            [spec("image", np.uint8, (1, 3, 224, 224))],
        ],
    )
    def test_models_that_take_no_images(self, tmp_path, inputs):
        save_image(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"wanted a model with one input float32\[\?, 3, H, W\]"):
            load_samples(tmp_path, inputs)

    def test_stray_files_and_empty_classes(self, tmp_path):
        (tmp_path / "cat").mkdir()
        with pytest.raises(DataError, match="found no images in 1 class folders"):
            load_samples(tmp_path, PICTURE)
        save_image(tmp_path / "cat/a.png")
        (tmp_path / "cat/notes.txt").touch()
        with pytest.raises(DataError, match=r"notes.txt: found no image by its name"):
            load_samples(tmp_path, PICTURE)
        (tmp_path / "cat/notes.txt").rename(tmp_path / "notes.txt")
        with pytest.raises(DataError, match=r"notes.txt: found a file beside class folders"):
            load_samples(tmp_path, PICTURE)

    def test_half_precision_input(self, tmp_path):
        save_image(tmp_path / "a.png")
        (feed,) = load_samples(tmp_path, [spec("image", np.float16, (1, 3, 32, 32))]).batches(1)
        assert feed["image"].dtype == np.float16


class Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


class Duck:
    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


class TestAsBatches:
    @pytest.mark.parametrize("wrap", [Reader, Duck, list, iter])
    def test_feeds_pass_unchanged(self, wrap):
        feeds = [{"x": rows(2)}, {"x": rows(5)}]
        found = list(as_batches(wrap(feeds), X, batch_size=1))
        assert all(one["x"] is two["x"] for one, two in zip(found, feeds, strict=True))

    def test_arrays_and_samples_are_cut(self):
        arrays = {"x": rows(5)}
        for source in (arrays, as_samples(arrays, X)):
            found = list(as_batches(source, X, batch_size=2))
            assert [len(feed["x"]) for feed in found] == [2, 2, 1]
            np.testing.assert_array_equal(joined(found), rows(5))

    def test_labels_are_kept_apart(self):
        samples = as_samples({"x": rows(2), "labels": np.array([4, 5], np.uint8)}, X)
        np.testing.assert_array_equal(samples.labels, [4, 5])
        (feed,) = samples.batches(2)
        assert set(feed) == {"x"}

    def test_a_fixed_batch_drops_the_rest_and_says_so(self):
        inputs = [spec(shape=(2, 3)), spec("y", shape=("n", 3))]
        arrays = {"x": rows(5), "y": rows(5)}
        with pytest.warns(UserWarning, match="1 of 5 samples do not fill the model's fixed batch of 2"):
            found = list(as_batches(arrays, inputs, batch_size=32))
        assert [len(feed["y"]) for feed in found] == [2, 2]

    def test_a_fixed_batch_that_is_never_full(self):
        with pytest.raises(DataError, match="found 3 samples, wanted the model's fixed batch of 4"):
            list(as_batches({"x": rows(3)}, [spec(shape=(4, 3))], batch_size=1))

    def test_two_fixed_batches(self):
        inputs = [spec(shape=(2, 3)), spec("y", shape=(1, 3))]
        with pytest.raises(DataError, match="give feeds from a reader"):
            list(as_batches({"x": rows(4), "y": rows(4)}, inputs, batch_size=1))
        feed = {"x": rows(2), "y": rows(1)}
        assert len(list(as_batches([feed], inputs, batch_size=1))) == 1

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ([], "found no feeds"),
            ([{"x": rows(2)}, {"y": rows(2)}], r"feed 2: found the keys \['y'\]"),
            ([{"x": rows(2).astype(np.float64)}], r"feed 1: found x: float64\[2, 3\]"),
            ([{"x": rows(2)[:, :1]}], r"feed 1: found x: float32\[2, 1\], wanted x: float32\[\?, 3\]"),
            ([{"x": rows(2) * np.nan}], "feed 1: found 6 NaN"),
            ([{"x": [[1.0, 2.0, 3.0]]}], "feed 1: found list in 'x'"),
            ([rows(2)], "feed 1: found ndarray"),
            ("samples.npz", "feed 1: found str"),
            ({"x": [1.0]}, "arrays: found list in 'x'"),
            ({"x": rows(2), 3: rows(2)}, "arrays: found the keys"),
            ({"x": np.full((2, 3), np.inf, np.float32)}, "arrays: found 6 NaN"),
        ],
    )
    def test_sources_that_do_not_fit(self, source, message):
        with pytest.raises(DataError, match=message):
            list(as_batches(source, X, batch_size=2))

    @pytest.mark.parametrize("size", [0, -1])
    def test_a_batch_has_at_least_one_sample(self, size):
        with pytest.raises(ConfigError, match=f"batch size: found {size}"):
            list(as_batches({"x": rows(2)}, X, batch_size=size))


GAIN = [spec(), spec(name="gain", shape=())]
GRAPH = [spec(name="x", shape=("V", 3)), spec(name="adjacency", shape=("V", "V"))]
STATE = [spec(name="x", shape=("n", 3)), spec(name="state", shape=(2, "n", 4))]


class TestInputsOfTheirOwnKind:
    """Inputs without axes, without a batch, of text, and masks."""

    def test_an_input_without_axes_has_one_value_for_all_samples(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=rows(3), gain=np.float32(2))
        np.savez(tmp_path / "b.npz", x=rows(2), gain=np.float32(2))
        np.savez(tmp_path / "c.npz", x=rows(2), gain=np.float32(3))
        samples = load_samples(tmp_path, GAIN)
        assert len(samples) == 7
        found = [(len(feed["x"]), float(feed["gain"])) for feed in samples.batches(4)]
        assert found == [(4, 2.0), (1, 2.0), (2, 3.0)]

    def test_nothing_but_inputs_without_axes(self):
        (feed,) = as_batches({"gain": np.array(2, np.float32)}, GAIN[1:], 4)
        assert feed["gain"].shape == ()

    @pytest.mark.parametrize(
        ("inputs", "shapes"), [(GRAPH, ((40, 3), (40, 40))), (STATE, ((5, 3), (2, 5, 4)))], ids=["V", "n"]
    )
    def test_a_first_axis_that_is_a_later_one_too_is_no_batch(self, tmp_path, inputs, shapes):
        assert not has_open_batch(inputs)
        arrays = {spec.name: np.zeros(shape, np.float32) for spec, shape in zip(inputs, shapes, strict=True)}
        for name in "ab":
            np.savez(tmp_path / f"{name}.npz", **arrays)
        samples = load_samples(tmp_path, inputs)
        assert (len(samples), len(samples.first(1))) == (2, 1)
        for source in (samples, [arrays, arrays]):
            feeds = list(as_batches(source, inputs, 32))
            assert [tuple(array.shape for array in feed.values()) for feed in feeds] == [shapes] * 2

    def test_text(self, tmp_path):
        inputs = [spec(name="words", dtype=np.dtype(object), shape=("N",))]
        words = np.array(["a", "bc", "d"])
        np.savez(tmp_path / "a.npz", words=words)
        for source in (load_samples(tmp_path / "a.npz", inputs), {"words": words}, [{"words": words}]):
            (feed,) = as_batches(source, inputs, 32)
            assert feed["words"].dtype == object
            assert feed["words"].tolist() == ["a", "bc", "d"]

    def test_minus_infinity_in_a_mask(self):
        mask = rows(2)
        mask[0] = -np.inf
        (feed,) = as_batches({"x": mask}, X, 2)
        np.testing.assert_array_equal(feed["x"], mask)

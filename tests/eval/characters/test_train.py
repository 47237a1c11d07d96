from itertools import islice

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from fgq.errors import ConfigError  # noqa: E402
from fgq.eval.characters import CLASSES, Split, train  # noqa: E402
from fgq.eval.characters.render import GlyphAtlas  # noqa: E402


@pytest.fixture
def atlas():
    """One random drawing per class, instead of the fonts."""
    labels = np.arange(len(CLASSES))
    glyphs = np.random.default_rng(0).integers(0, 256, (len(labels), 48, 48)).astype(np.uint8)
    return GlyphAtlas(glyphs, labels, np.zeros_like(labels))


def test_the_learning_rate_rises_and_falls_as_a_cosine_in_cycles_of_doubling_length():
    assert [train.length(cycles) for cycles in range(4)] == [0, 1500, 4500, 10500]
    rates = np.array([train.learning_rate(step) for step in range(10500)])
    assert np.all(np.diff(rates[:100]) > 0)
    for start, end in ((150, 1500), (1500, 4500), (4500, 10500)):
        assert np.all(np.diff(rates[start:end]) < 0)
        assert rates[end - 1] < 1e-5 * rates.max()
    assert rates[3000] == pytest.approx(rates[1500] / 2)  # half-way down, apart from rounding


@pytest.mark.parametrize("first", [1, 4, 6])
def test_batches_go_on_where_they_stopped(atlas, first):
    wanted = list(islice(train.batches(atlas, 3, 0), first + 2))[first:]
    for (images, labels), (same_images, same_labels) in zip(
        islice(train.batches(atlas, 3, first), 2), wanted, strict=True
    ):
        assert (images.shape, images.dtype) == ((128, 1, 32, 32), torch.float32)
        assert 0 <= images.min() <= images.max() <= 1
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_the_seed_of_the_calibration_images_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="seed 1: found the calibration images' own"):
        train.train(1, 1, tmp_path / "none.pt", resume=False)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="found no checkpoint"):
        train.train(1, 0, tmp_path / "none.pt", resume=True)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(atlas, monkeypatch, tmp_path):
    monkeypatch.setattr(train.GlyphAtlas, "draw", lambda *_, **__: atlas)
    few = Split(np.zeros((8, 1, 32, 32), np.float32), np.zeros(8, np.int64))
    monkeypatch.setattr(train, "load", lambda split: few)
    monkeypatch.setattr(train, "BATCH", 32)
    monkeypatch.setattr(train, "_FIRST_CYCLE", 4)
    monkeypatch.setattr(train, "_CHECKPOINT_EVERY", 2)
    whole = train.train(1, 0, tmp_path / "whole.pt", resume=False)
    endless = train.batches
    with monkeypatch.context() as stopped:
        stopped.setattr(train, "batches", lambda *arguments: islice(endless(*arguments), 3))
        with pytest.raises(StopIteration):
            train.train(1, 0, tmp_path / "parts.pt", resume=False)
    with pytest.raises(
        ConfigError, match="found step 2 of a run with seed 0, wanted at most step 4 with seed 5"
    ):
        train.train(1, 5, tmp_path / "parts.pt", resume=True)
    parts = train.train(1, 0, tmp_path / "parts.pt", resume=True)
    assert not parts.training
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=0, msg=name)

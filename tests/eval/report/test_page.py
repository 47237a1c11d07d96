"""The document: complete, escaped, alone, and readable in a browser."""

import math
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fgq import convert
from fgq.eval.report.page import comparison, render
from fgq.eval.report.quality import Quality
from fgq.eval.report.study import LAYER_SAMPLES, study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>document.title='{}'</script>\x1b[31m\"'&{{{{ 7*7 }}}}"
VOID = {"meta", "br", "path", "rect"}


def silent(stage, done, total):
    """Show no progress."""


class Document(HTMLParser):
    """The elements of a page, and its text; fails where they are not nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.rows, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "tr" in self.open:
            self.rows[-1] += data


@pytest.fixture(scope="module")
def hostile(write_files, tmp_path_factory):
    """A report whose nodes have names that are markup."""
    files = write_files(tmp_path_factory.mktemp("hostile"), HOSTILE.format, group_size=4, exclude="'t'")
    return study(
        files.float_model, files.converted, str(files.plain), limit=9, command=["</code>"], progress=silent
    )


def count(document, tag, **attributes):
    return sum(
        kind == tag and all(found.get(key.rstrip("_")) == value for key, value in attributes.items())
        for kind, found in document.elements
    )


def test_lists_are_complete(findings):
    document = Document(render(findings))
    names = [layer.report.name for layer in findings.layers]
    rows = [row for row in document.rows if any(name in row for name in names)]
    # All layers, and then those that stay float.
    assert [next(name for name in names if name in row) for row in rows] == [*names, "layer_t"]
    for row, layer in zip(rows, findings.layers, strict=False):
        assert f"{layer.report.weights:,}" in row
        assert layer.report.scheme in row
    assert "it could be converted, and was left out (--include, --exclude)" in rows[-1]
    assert count(document, "details") == 3
    assert count(document, "svg", class_="histogram") == 2 * 3
    assert count(document, "svg", class_="bar") == 3 * 3 + 1  # of the float layer a ratio alone


def test_figures(findings):
    text = render(findings)
    first = findings.quality.measures[0]
    assert first.after.percent(2) in text
    assert first.difference.percent(2) in text
    for entry in findings.provenance.inputs:
        assert entry.sha256 in text
    for layer in findings.layers:
        if layer.sensitivity is not None:
            assert f">{layer.sensitivity:.2g}<" in text
            assert f"{100 * layer.weights.zero_share:.1f} % of the weights become zero" in text
        assert f">{layer.signal_to_noise_db:.1f}<" in text


def test_multiplications(findings):
    rows = {name: cells for name, *cells in comparison(findings)}
    before, after, share = rows["multiplications by weights, one sample"]
    # 3x3 kernels at 64 places of 3 and 8 channels to 8, one of 8 to 6, and a matrix 6x5
    assert before == f"{64 * (27 * 8 + 72 * 8 + 8 * 6) + 30:,}"
    # Groups of four along 8 channels: a quarter of the second convolution stays; the third is float.
    assert after == f"{64 * (27 * 8 + 18 * 8 + 8 * 6) + 30:,}"
    assert share.startswith("-")


def test_float_constants(findings, files):
    """Those of the layer that was left out, and the scales."""
    arrays = map(numpy_helper.to_array, onnx.load(files.converted).graph.initializer)
    expected = sum(array.nbytes for array in arrays if array.dtype.kind == "f")
    assert 4 * 48 < expected == findings.float_bytes


def test_every_picture_has_a_title(findings):
    text = render(findings)
    assert count(Document(text), "svg") == len(re.findall(r'<svg [^>]*role="img"><title>[^<]+</title>', text))


def test_numbers_are_right_aligned(findings):
    document = Document(render(findings))
    cells = [found for tag, found in document.elements if tag == "td" and "data-label" in found]
    assert cells
    assert all("n" in found["class"].split() for found in cells)


@pytest.mark.parametrize("which", ["findings", "hostile"])
def test_stands_alone(request, which):
    text = render(request.getfixturevalue(which))
    document = Document(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in document.elements}
    assert not any({"src", "href", "onload", "style"} & set(found) for _, found in document.elements)
    assert "default-src 'none'" in text


def test_names_are_escaped(hostile):
    text = render(hostile)
    document = Document(text)
    assert "<script" not in text
    assert "\x1b" not in text
    shown = HOSTILE.format("a").replace("\x1b", r"\x1b")
    assert shown in document.text
    assert "</code>" in document.text.replace("\n", "")  # the command
    # Names in titles, the table and the headings of the histograms.
    assert document.text.count(shown) >= 4


def test_the_same_findings_give_the_same_text(findings):
    assert render(findings) == render(findings)


def test_values_that_are_no_numbers(findings):
    some = tuple(
        replace(layer, sensitivity=value, signal_to_noise_db=ratio)
        for layer, value, ratio in zip(
            findings.layers,
            (math.nan, None, math.inf, 0.0),
            (math.inf, None, -math.inf, math.nan),
            strict=True,
        )
    )
    problem = Quality(samples=0, measures=(), problem="found <NaN>")
    text = render(replace(findings, layers=some, quality=problem, whole=math.nan))
    document = Document(text)
    assert "Quality could not be measured: found <NaN>" in document.text
    lengths = [
        float(found["width"])
        for tag, found in document.elements
        if tag == "rect" and found.get("class") == "fill"
    ]
    assert all(0 <= length <= 100 for length in lengths)


def test_one_layer(make_model, tmp_path):
    model = make_model("(float[N,4] x) => (float y) { y = MatMul(x, w) }", {"w": np.eye(4, dtype=np.float32)})
    model.graph.node[0].name = "only"
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), np.float32))
    onnx.save(model, tmp_path / "f.onnx")
    converted = convert(model, activations="none", first_last_int8=False).model
    onnx.save(converted, tmp_path / "c.onnx")
    paths = tmp_path / "f.onnx", tmp_path / "c.onnx"
    found = study(*paths, str(tmp_path / "x.npz"), limit=None, command=[], progress=silent)
    assert found.layers[0].sensitivity == 0.0
    text = render(found)
    assert "found nothing but zeros in its first output" in text
    assert "None: every layer with weights is quantized." in text
    assert "They are not quantized." in text


def test_layers_are_measured_on_few_samples(findings, hostile):
    assert findings.layer_samples == LAYER_SAMPLES < findings.quality.samples == 70
    assert hostile.layer_samples == hostile.quality.samples == 9


@pytest.mark.parametrize(("batch", "measured"), [(7, 63), (70, 70)])
def test_a_fixed_batch(files, tmp_path, batch, measured):
    fixed = []
    for path in files[:2]:
        model = onnx.load(path)
        del model.graph.value_info[:]
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        fixed.append(tmp_path / path.name)
        onnx.save(model, fixed[-1])
    found = study(*fixed, str(files.labelled), limit=None, command=[], progress=silent)
    assert (found.layer_samples, found.quality.samples) == (measured, 70)


def test_size_grows_little_with_layers(findings):
    """A model of 300 layers takes some MB, not some hundred."""
    many = tuple(findings.layers[1] for _ in range(300))
    report = replace(findings.report, layers=tuple(layer.report for layer in many))
    assert len(render(replace(findings, layers=many, report=report)).encode()) < 2_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
class TestBrowser:
    """What a browser makes of it, in a frame whose page looks at it."""

    FRAME = """<!DOCTYPE html><title></title><iframe width="{width}" srcdoc="{report}"></iframe><script>
        onload = () => {{
            const page = document.querySelector('iframe').contentDocument;
            const pictures = [...page.querySelectorAll('details[open] svg, table svg')];
            const shown = pictures.filter(picture => picture.getBoundingClientRect().width > 20);
            document.title = [page.title, page.documentElement.clientWidth,
                page.documentElement.scrollWidth, pictures.length, shown.length].join('|');
        }}
    </script>"""

    @classmethod
    def title(cls, text, tmp_path, width):
        page = tmp_path / "page.html"
        page.write_text(cls.FRAME.format(width=width, report=escape(text)), encoding="utf-8")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
        command.append(f"--user-data-dir={tmp_path / 'profile'}")
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        return re.search("<title>(.*?)</title>", shown)[1].split("|")

    @pytest.mark.parametrize(("which", "width"), [("findings", 1200), ("hostile", 360)])
    def test_is_read_without_scrolling_sideways(self, request, tmp_path, which, width):
        text = render(request.getfixturevalue(which))
        title, room, needed, pictures, shown = self.title(text, tmp_path, width)
        assert title == "converted.onnx – fgq report"  # no name was run, which would have changed it
        assert int(needed) <= int(room) <= width
        assert int(pictures) == int(shown) == 3 * 3 + 1 + 2 * 3

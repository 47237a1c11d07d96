import pytest

from fgq.errors import DataError
from fgq.eval.markdown import check_places, markdown_table, replace_tables, rewrite


def test_replaced_tables():
    document = "a\n<!-- table one -->\nold\n<!-- end one -->\nb\n<!-- table two -->\n<!-- end two -->\n"
    replaced = replace_tables(document, {"one": "| 1 |", "two": "| 2 |"})
    assert replaced == (
        "a\n<!-- table one -->\n| 1 |\n<!-- end one -->\nb\n<!-- table two -->\n| 2 |\n<!-- end two -->\n"
    )
    assert replace_tables(replaced, {"one": "| 1 |"}) == replaced


@pytest.mark.parametrize("document", ["", "<!-- table one -->\n", "<!-- end one --><!-- table one -->"])
def test_a_document_without_a_place_is_refused(document):
    with pytest.raises(DataError, match="<!-- table one -->"):
        replace_tables(document, {"one": ""})


def test_a_file_is_rewritten_or_refused_and_left(tmp_path):
    path = tmp_path / "document.md"
    with pytest.raises(DataError, match="no such file"):
        check_places(path, ["one"])
    path.write_text("<!-- table one -->\n<!-- end one -->\n", encoding="utf-8")
    check_places(path, ["one"])
    rewrite(path, {"one": markdown_table(["", "|x|"], [["a", "1"]])})
    wanted = "<!-- table one -->\n|  | \\|x\\| |\n| --- | ---: |\n| a | 1 |\n<!-- end one -->\n"
    assert path.read_text(encoding="utf-8") == wanted
    with pytest.raises(DataError, match="table two"):
        rewrite(path, {"one": "", "two": ""})
    assert path.read_text(encoding="utf-8") == wanted

"""The shape of the tree: what may only get better. ``tests/house.toml`` lists what is not there yet.

``python tests/test_house.py`` writes that file anew, where something has become better.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEBTS = Path(__file__).with_name("house.toml")
FOLDERS = ("fgq", "kernels", "converters", "eval")

TOP_NAMES = 14
MODULE_LINES = 450
FUNCTION_LINES = 60
PARAMETERS = 12


def modules():
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def functions():
    """Yield each function's place and node."""
    for name, text in modules().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}:{node.name}", node


def parameters(node):
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def found():
    """Return what exceeds the limits."""
    lengths = {
        place: node.end_lineno - node.lineno + 1
        for place, node in functions()
        if not place.startswith("kernels/")  # a kernel is one loop, emitted in one piece
    }
    mirrored = {
        name: ROOT / "tests" / Path(name).with_name("test_" + Path(name).name.lstrip("_"))
        for name in modules()
        if not name.endswith("__init__.py")
    }
    return {
        "modules": {
            name: lines for name, text in modules().items() if (lines := text.count("\n")) > MODULE_LINES
        },
        "functions": {place: lines for place, lines in lengths.items() if lines > FUNCTION_LINES},
        "parameters": {
            place: count for place, node in functions() if (count := parameters(node)) > PARAMETERS
        },
        "without_tests": {name: 1 for name, test in mirrored.items() if not test.exists()},
    }


@pytest.mark.parametrize("kind", ["modules", "functions", "parameters", "without_tests"])
def test_no_debt_is_added_and_none_is_listed_that_is_paid(kind):
    now, listed = found()[kind], tomllib.loads(DEBTS.read_text())[kind]
    grown = {name: size for name, size in now.items() if size > listed.get(name, 0)}
    assert not grown, f"found more than {listed}"
    assert not set(listed) - set(now), "paid: run python tests/test_house.py"


def test_the_first_look_shows_the_datas_path():
    names = {path.name for path in (ROOT / "fgq").iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert len(names) <= TOP_NAMES


def main():
    lines = ["# What exceeds the limits of tests/test_house.py, with its size. It may only shrink.\n"]
    for kind, entries in found().items():
        lines.append(f"\n[{kind}]\n")
        lines.extend(f'"{name}" = {size}\n' for name, size in entries.items())
    DEBTS.write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())

"""Find names of the product that nothing of it uses: code that tests alone reach. Part of ``make lint``.

A name counts as used where it is read, imported, an attribute, or a word of a string (``__all__``, tables of
modules) anywhere in the product, its own definition apart. So what shares its name with something else is
missed; what is found is not used.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("fgq", "kernels", "converters", "eval")

_ORT = "stands in for onnxruntime's InferenceSession"
_NUMBA = "Numba calls it"

ALLOWED = {
    "accumulate": "lets tests and users look at a layer's int32 sums",
    "activation_bytes": "public, docs/runtime.md",
    "from_function": _NUMBA,
    "get_modelmeta": _ORT,
    "get_overridable_initializers": _ORT,
    "get_provider_options": _ORT,
    "get_providers": _ORT,
    "get_session_options": _ORT,
    "load_overload": _NUMBA,
    "repr_int": "reprlib calls it",
    "save_overload": _NUMBA,
    "tofile": "onnx_ir calls it",
}
"""What others call, by name and reason; an entry that is not needed is an error too."""

OTHERS_CALL = re.compile(r"visit_.*|run_node|forward|__.*__")
"""Methods that a base class calls."""


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield the public functions, classes, constants and methods of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((item.name, item) for item in node.body if isinstance(item, ast.FunctionDef))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


def uses(tree: ast.AST) -> Counter[str]:
    """Count the names that a tree reads."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.keyword) and node.arg:
            found[node.arg] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found.update(re.findall(r"\w+", node.value))
    return found


def registers(node: ast.AST) -> bool:
    """Tell whether a definition registers itself: by a decorator, as commands and steps, or a base class."""
    if isinstance(node, ast.ClassDef) and any(
        ast.unparse(base).startswith("Registered") for base in node.bases
    ):
        return True
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(isinstance(one, ast.Call) or ast.unparse(one) == "operator" for one in decorators)


def main() -> int:
    """Print what is not used; return 1 where there is any."""
    trees = {
        path: ast.parse(path.read_text())
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    used: Counter[str] = Counter()
    for tree in trees.values():
        used.update(uses(tree))
    needed, wrong = set[str](), 0
    for path, tree in trees.items():
        for name, node in definitions(tree):
            if name.startswith("_") or OTHERS_CALL.fullmatch(name) or registers(node):
                continue
            if used[name] - uses(node)[name] > 0:
                continue
            if name in ALLOWED:
                needed.add(name)
                continue
            print(f"{path.relative_to(ROOT)}:{node.lineno}: {name} is used by nothing")  # type: ignore[attr-defined]
            wrong += 1
    for name in sorted(set(ALLOWED) - needed):
        print(f"tools/unused.py: {name} needs no exception")
        wrong += 1
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

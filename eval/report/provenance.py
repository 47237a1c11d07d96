"""What a report was made from: files and their hashes, versions, the command."""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from fgq.errors import DataError
from fgq.format import onnx_file

PACKAGES = ("fgq", "onnxruntime", "onnx", "onnx-ir", "numpy")


@dataclass(frozen=True, slots=True)
class Input:
    """A file, or a folder of files, that was read.

    Parameters
    ----------
    name : str
    bytes : int
        Of a folder, the sum over its files.
    sha256 : str
        In hexadecimal. Of a folder, that of the lines that ``sha256sum`` prints for its files, in order of
        their paths relative to it.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How to make a report again.

    Parameters
    ----------
    command : str
        For a POSIX shell.
    inputs : tuple of Input
    versions : dict of str to str
        Of Python and the packages that compute, and the processor's architecture.
    """

    command: str
    inputs: tuple[Input, ...]
    versions: dict[str, str]


def provenance(arguments: Iterable[str], models: dict[Path, ir.Model], data: str) -> Provenance:
    """Hash what a report is made from.

    Parameters
    ----------
    arguments : iterable of str
        The command, word by word.
    models : dict of Path to onnx_ir.Model
        The models by their files.
    data : str
        A file, a folder, or the name of a data set that comes with fgq.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    paths = [file for path, model in models.items() for file in sorted(onnx_file.files_of(path, model))]
    if Path(data).exists():
        paths.append(Path(data))
    return Provenance(
        command=shlex.join(arguments),
        inputs=tuple(_input(path) for path in dict.fromkeys(paths)),
        versions={"Python": platform.python_version()}
        | {name: version(name) for name in PACKAGES}
        | {"architecture": platform.machine()},
    )


def _input(path: Path) -> Input:
    try:
        if not path.is_dir():
            return Input(str(path), path.stat().st_size, _sha256(path))
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        size = sum(file.stat().st_size for file in files)
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        return Input(str(path), size, digest)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that reach new code of the reader and the container: atheris, with fields changed as well as bytes.

::

    python tests/fuzz/coverage_guided.py --minutes 10 --seed 0

libFuzzer keeps each changed file that runs lines of fgq that none before has run, and changes those on. An
exception that is no FgqError is counted by its kind; a crash or a hang ends the run, and the file is named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import workers  # first: it sets the number of threads

INSTRUMENTED = (
    *(
        "fgq.format.onnx_file",
        "fgq.format.external",
        "fgq.format.dialect",
        "fgq.format.legality",
        "fgq.format.geometry",
        "fgq.format.shapes",
    ),
    *(
        "fgq.format.container",
        "fgq.format.functions",
        "fgq.format.dynamic_functions",
        "fgq.config",
        "fgq.support.schema",
        "fgq.runtime",
    ),
)


def main() -> int:
    """Run libFuzzer in a process of its own, and report what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FGQ_FUZZ_SEED", "0")))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--corpus", type=Path, help="a folder of files to begin with, where new ones are kept"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.worker:
        _fuzz([sys.argv[0], *rest])
        return 0
    with tempfile.TemporaryDirectory(prefix="fgq-fuzz-") as folder:
        corpus = given.corpus or Path(folder) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        _begin(corpus, given.seed)
        options = {
            "max_total_time": int(60 * given.minutes), "seed": given.seed + 1, "timeout": 30,
            "rss_limit_mb": 4096, "max_len": 40_000, "artifact_prefix": f"{Path.cwd()}/",
        }  # fmt: skip
        flags = [f"-{name}={value}" for name, value in options.items()]
        done = subprocess.run(
            [sys.executable, __file__, "--worker", str(corpus), *flags],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    return _report(done, given.seed)


def _report(done: subprocess.CompletedProcess[str], seed: int) -> int:
    cases = re.findall(r"Done (\d+) runs", done.stderr) or re.findall(r"^#(\d+)", done.stderr, re.M) or ["0"]
    covered = re.findall(r"cov: (\d+)", done.stderr) or ["0"]
    kinds = re.findall(r"^FOUND (\d+) (.*)$", done.stdout, re.M)
    for times, kind in kinds:
        print(f"{times:>6} {kind}")
    ended = [
        line for line in done.stderr.splitlines() if "ERROR: libFuzzer" in line or "Test unit written" in line
    ]
    faults = len(kinds) + bool(ended or done.returncode)
    if ended or done.returncode:
        print("\n".join(ended) or done.stderr[-3000:])
    summary = f"{covered[-1]} places covered; {faults} kinds of fault"
    print(f"coverage_guided: {cases[-1]} cases from seed {seed}: {summary}")
    return bool(faults)


def _begin(corpus: Path, seed: int) -> None:
    from mutate_models import load_origins

    for index, origin in enumerate(load_origins(seed)):
        (corpus / f"{index}.onnx").write_bytes(origin.converted)


def _fuzz(arguments: list[str]) -> None:
    """Run libFuzzer in this process; it ends it."""
    import atheris  # of the extra `fuzz`

    with atheris.instrument_imports(include=list(INSTRUMENTED), enable_loader_override=False):
        import fgq.runtime
    import numpy as np
    import onnx
    from mutating import field_by_field

    from fgq.errors import FgqError

    warnings.simplefilter("ignore")
    found: Counter[str] = Counter()

    def one(data: bytes) -> None:
        try:
            fgq.runtime.Session(data, threads=1, allow_float=True)
        except FgqError as error:
            if "\n" in str(error).strip():
                _count(found, f"not one line: {workers.plain(str(error))}", "")
        except Exception as error:
            _count(found, workers.kind_of(error), traceback.format_exc())

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        if rng.random() < 0.7:
            try:
                changed = field_by_field(onnx.ModelProto.FromString(data), rng).SerializeToString()
            except Exception:  # no protobuf, or a value that it cannot hold
                changed = b""
            if 0 < len(changed) <= most:
                return changed
        mutated: bytes = atheris.Mutate(data, most)
        return mutated

    atheris.Setup(arguments, one, custom_mutator=change)
    atheris.Fuzz()


def _count(found: Counter[str], kind: str, detail: str) -> None:
    found[kind] += 1
    if found[kind] == 1:
        print(f"FOUND 1 {kind}", flush=True)
        print(detail, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

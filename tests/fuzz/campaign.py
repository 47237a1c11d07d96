"""All fuzzers, one after the other: ``make fuzz``.

::

    python tests/fuzz/campaign.py --seed 3 --minutes 10                     # each of them for ten minutes
    python tests/fuzz/campaign.py --only graphs mutate_models --count 500   # two of them, 500 cases each

Without options each runs the cases of docs/security.md, for hours. The same is given by the environment:
FGQ_FUZZ_SEED, FGQ_FUZZ_COUNT, FGQ_FUZZ_MINUTES. Each ends in one line; the exit code is 1 where any has found
something.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent

COUNTS = {
    "graphs": 10_000,
    "mutate_models": 50_000,
    "mutate_documents": 10_000,
    "mutate_data": 10_000,
    "signals": 60,
}
"""Cases of each fuzzer; `coverage_guided` is measured in minutes."""


def main() -> int:
    """Run the fuzzers that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FGQ_FUZZ_SEED") or 0))
    parser.add_argument("--count", type=int, default=int(os.environ.get("FGQ_FUZZ_COUNT") or 0))
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("FGQ_FUZZ_MINUTES") or 0))
    parser.add_argument("--only", nargs="*", choices=[*COUNTS, "coverage_guided"])
    given = parser.parse_args()
    failed = []
    for name in given.only or [*COUNTS, "coverage_guided"]:
        if name == "coverage_guided":
            options = ["--minutes", str(given.minutes or 10)]
        else:
            options = ["--count", str(given.count or COUNTS[name])]
            options += ["--minutes", str(given.minutes)] if given.minutes else []
        if name in ("mutate_data", "signals"):
            options = [str(given.count or COUNTS[name]), str(given.seed)]
        else:
            options = ["--seed", str(given.seed), *options]
        begin = time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *options]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - begin:.0f} s\n", flush=True)
    print("found something: " + ", ".join(failed) if failed else "nothing found", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

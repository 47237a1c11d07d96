"""Processes that signals end, in the places where an exception would be lost."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")

FGQ = Path(sys.executable).with_name("fgq")


def run(program, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "place",
    [
        "try:\n    stop()\nexcept BaseException:\n    pass",
        "class Odd:\n    def __del__(self): stop()\nOdd()",
        "import ctypes\nctypes.CFUNCTYPE(None)(stop)()",
        "import threading\nthreading._register_atexit(stop)",
        "import atexit\natexit.register(stop)",
        "with fgq.support.stopping.at_stop(stop):\n    stop()",
        "with fgq.support.stopping.at_stop(lambda: 1 / 0):\n    stop()",
    ],
)
def test_no_place_swallows_a_signal(number, place):
    setting = "import os, fgq.support.stopping\nfgq.support.stopping.stop_on_signals()\n"
    done = run(f"{setting}stop = lambda: os.kill(os.getpid(), {number})\n{place}")
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"fgq: error: stopped by {signal.Signals(number).name}\n"


def test_files_take_their_places_together():
    done = run("""
        import os, signal
        from fgq.support import stopping
        stopping.stop_on_signals()
        with stopping.at_stop(lambda: os.write(1, b"removed ")):
            with stopping.held():
                with stopping.held():
                    os.kill(os.getpid(), signal.SIGTERM)
                os.write(1, b"moved ")
            os.write(1, b"never")
    """)
    assert (done.returncode, done.stdout) == (143, "moved removed ")


def test_a_forked_process_leaves_what_is_its_parents():
    done = run("""
        import os, signal
        from fgq.support import stopping
        stopping.stop_on_signals()
        with stopping.at_stop(lambda: os.write(1, b"removed")):
            if (child := os.fork()) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["-15"], "")


def test_processes_that_share_the_work_end_too():
    done = run("""
        import multiprocessing, os, signal, time
        from fgq.support import stopping
        stopping.stop_on_signals()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        os.kill(os.getpid(), signal.SIGTERM)
    """)
    assert done.returncode == 143  # reached within the time limit: the child holds the pipes open


def test_processes_that_ignore_a_request_are_killed():
    done = run("""
        import multiprocessing, os, signal, time
        from fgq.support import stopping
        stopping.stop_on_signals()
        def work():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(120)
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
    """)
    assert (done.returncode, done.stderr) == (143, "fgq: error: stopped by SIGTERM\n")


def test_ignored_signals_stay_ignored():
    done = run("""
        import os, signal
        from fgq.support import stopping
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stopping.stop_on_signals()
        os.kill(os.getpid(), signal.SIGINT)
        print("here")
    """)
    assert (done.returncode, done.stdout) == (0, "here\n")


def test_the_entry_point_sets_signals_before_it_loads_anything():
    """The first thing that `main` loads is the module of the commands."""
    done = run("""
        import os, signal, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name not in ("fgq", "fgq.cli", "fgq.support.stopping"):
                    os.kill(os.getpid(), signal.SIGTERM)
        from fgq.cli import main
        light = {"typer", "typing", "pathlib", "numpy", "fgq.cli.commands"} & set(sys.modules)
        sys.meta_path.insert(0, Finder())
        main()
    """)
    assert (done.returncode, done.stderr) == (143, "fgq: error: stopped by SIGTERM\n")


def test_a_signal_while_the_interpreter_ends():
    """At the very end of the command's own process what it has done stands, and its exit code says so."""
    done = run("""
        import atexit, os, signal, sys
        class Late:
            def __del__(self): os.kill(os.getpid(), signal.SIGTERM)
        late = Late()  # dies when modules are taken apart
        from fgq.cli import main
        sys.argv = ["fgq", "--version"]
        main()
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fgq ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run([FGQ, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "fgq: error: standard output: cannot be written (No space left on device)\n"


def test_output_that_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([FGQ, "--version"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")

"""sessions/native.py: a library is code, so what opens it is careful."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.exporters.native.toolchain import SOURCES
from cnet_deploy.files import digest
from cnet_deploy.hardware.cpu import host_isas
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.sessions import native
from cnet_deploy.sessions.native import NativeSession, open_file
from tests.cases import long

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def made(converted: DenselyConnected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cd.export(converted, "native", tmp_path_factory.mktemp("native") / "model.so").path


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> Path:
    """A copy of the artifact and its manifest, to be spoiled."""
    for suffix in ("", ".json"):
        shutil.copy(f"{made}{suffix}", tmp_path / f"model.so{suffix}")
    return tmp_path / "model.so"


def images(batch: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((batch, 3, 32, 32), np.float32)


def best_isa(path: Path) -> str:
    carried = read_pair(path).require_manifest("a library").details["isas"]
    return next(isa for isa in host_isas() if isa in carried)


def change_manifest(path: Path, **changes: Any) -> None:
    place = path.with_name(path.name + ".json")
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def test_numbers_and_signatures_are_those_of_the_header() -> None:
    header = re.sub(r"/\*.*?\*/", "", (SOURCES / "cnet.h").read_text(), flags=re.DOTALL)
    numbers = {name: int(value) for name, value in re.findall(r"^#define CNET_(\w+) (\d+)u?$", header, re.MULTILINE)}
    assert numbers == {"API_VERSION": native.API_VERSION, "MAX_THREADS": native.MAX_THREADS}
    listed = re.search(r"enum cnet_status \{(.*?)\}", header, re.DOTALL)
    assert listed is not None
    statuses = {name: int(value) for name, value in re.findall(r"CNET_(\w+) = (\d+)", listed[1])}
    assert len(statuses) == listed[1].count("CNET_") == 14
    ours = ("UNSUPPORTED_CPU", "UNKNOWN_ISA", "NO_MEMORY", "NO_THREAD", "FORKED")
    assert {name: getattr(native, f"_{name}") for name in ours} == {name: statuses[name] for name in ours}
    assert set(native._FAILURES) == {statuses[name] for name in ours}
    signatures = re.findall(r"CNET_API cnet_status (\w+)\((.*?)\);", header, re.DOTALL)
    assert len(signatures) == header.count("CNET_API cnet_status")
    assert {name: [argument_type(text.strip()) for text in given.split(",")] for name, given in signatures} == {
        **native._INTERFACE,
        **native._ADDED,
    }


def argument_type(text: str) -> Any:
    """What ctypes passes for an argument: text that goes in as such, every other pointer as an address."""
    if re.fullmatch(r"const char \*\w+", text):
        return ctypes.c_char_p
    if "*" in text:
        return ctypes.c_void_p
    return {"int": ctypes.c_int, "size_t": ctypes.c_size_t, "cnet_sharing": ctypes.c_int}[text.rpartition(" ")[0]]


def test_what_a_session_tells(made: Path, converted: DenselyConnected) -> None:
    with cd.open_session(made, threads=2) as session:
        assert isinstance(session, NativeSession)
        assert (session.backend, session.device, session.precision, session.threads) == ("native", "cpu", "fp32", 2)
        assert session.input_shape == (None, 3, 32, 32) and session.classes == 10
        assert session.architecture == converted.architecture and session.preprocessing == converted.preprocessing
        assert session.manifest is not None and session.manifest.target == "native"
        assert session.isa in session.manifest.details["isas"]
    session.close()
    with pytest.raises(InputRefused, match="the session was closed"):
        session.run(images())


@long
def test_int8(converted: DenselyConnected, tmp_path: Path, compiled: None) -> None:
    """In Python, with images and with batches, and in C, where the library itself prepares an image."""
    images_path, labels = EXAMPLES / "cifar10-test-500.bin", EXAMPLES / "cifar10-labels.txt"
    path = cd.export(converted, "native", tmp_path / "model.so", precision="int8", calibrate=images_path, labels=labels).path
    with cd.open_session(path, threads=2) as session:
        assert isinstance(session, NativeSession) and session.precision == "int8" and session.manifest is not None
        carried = session.manifest.details["isas"]
        assert session.isa == next(isa for isa in host_isas() if isa in carried)
        rows = session.run(np.concatenate([images(), np.full((1, 3, 32, 32), np.nan, np.float32)]))
        assert np.isfinite(rows[:2]).all() and np.isnan(rows[2]).all()
    names = [answer.guesses[0].name for answer in cd.classify(path, EXAMPLES / "images", top=1)]
    assert names == ["cat", "ship", "truck"]
    for isa in carried:
        if isa in host_isas():
            with cd.open_session(path, isa=isa) as session:
                assert np.array_equal(session.run(images()), rows[:2])
        else:
            with pytest.raises(Unavailable, match="this processor lacks the instructions that the library was built for"):
                cd.open_session(path, isa=isa)
    with pytest.raises(InputRefused, match="the library carries no code of that name"):
        cd.open_session(path, isa="avx512")
    program = tmp_path / "classify"
    source = EXAMPLES / "native" / "classify.c"
    subprocess.run(["cc", "-O2", "-I", str(SOURCES), str(source), str(path), "-Wl,-rpath,$ORIGIN", "-o", str(program)], check=True)
    done = subprocess.run([program, EXAMPLES / "native" / "cat.ppm"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "cat" or " cat" in done.stdout.splitlines()[0]


def test_shape_type_and_layout_of_a_batch(made: Path) -> None:
    with open_file(read_pair(made), device="cpu", threads=1) as session:
        expected = session.run(images())
        spread = np.zeros((2, 3, 32, 64), np.float32)
        spread[..., ::2] = images()
        assert np.array_equal(session.run(spread[..., ::2]), expected)
        assert np.array_equal(session.run(np.asfortranarray(images())), expected)
        readonly = images()
        readonly.flags.writeable = False
        assert np.array_equal(session.run(readonly), expected)
        for wrong in (images()[0], images().astype(np.float64), images()[:, :2], images()[:0], images()[..., :31], images().tolist()):
            with pytest.raises(InputRefused, match=r"batch is .*; expected float32 \[N, 3, 32, 32\]"):
                session.run(wrong)  # type: ignore[arg-type]
        one = np.concatenate([session.run(image[None]) for image in images(9)])
        assert np.array_equal(session.run(images(9)), one)


def test_the_interpreter_goes_on_meanwhile(made: Path) -> None:
    """While one thread is inside the library, another runs Python."""
    with open_file(read_pair(made), device="cpu", threads=1) as session:
        big = images(2000)
        session.run(images())
        inside = threading.Thread(target=session.run, args=(big,))
        inside.start()
        turns = 0
        while inside.is_alive():
            turns += 1
            time.sleep(0.0005)
        inside.join()
    assert turns > 20  # some 0.5 s of work; with the lock held there would be a turn or two


def test_many_threads_on_one_session(made: Path) -> None:
    with open_file(read_pair(made), device="cpu", threads=2) as session:
        expected = session.run(images())
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(session.run(images()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8 and all(np.array_equal(logits, expected) for logits in found)


def _run_in_child(session: NativeSession, answers: Any) -> None:
    try:
        session.run(images())
        answers.put("ran")
    except Unavailable as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_session_does_not_cross_a_fork(made: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with open_file(read_pair(made), device="cpu", threads=2) as session:
        session.run(images())
        child = context.Process(target=_run_in_child, args=(session, answers))
        child.start()
        assert "opened before a fork" in answers.get(timeout=60)
        child.join()
        session.run(images())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_runs(made: Path) -> None:
    """The child must hear that it may not use the session, not wait for a lock that nobody will give back."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with open_file(read_pair(made), device="cpu", threads=1) as session:
        busy = threading.Thread(target=session.run, args=(images(2000),))
        busy.start()
        time.sleep(0.02)
        child = context.Process(target=_run_in_child, args=(session, answers))
        child.start()
        assert "opened before a fork" in answers.get(timeout=60)
        child.join()
        busy.join()


def test_a_daemon_thread_at_the_end(made: Path) -> None:
    script = (
        "import sys, threading, time, numpy as np, cnet_deploy as cd\n"
        "session = cd.open_session(sys.argv[1], threads=1)\n"
        "batch = np.zeros((500, 3, 32, 32), np.float32)\n"
        "threading.Thread(target=lambda: [session.run(batch) for _ in range(1000)], daemon=True).start()\n"
        "time.sleep(0.2)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, made], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_sessions_leave_nothing_open(made: Path) -> None:
    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    open_file(read_pair(made), device="cpu", threads=4).close()
    before = count()
    for _ in range(20):
        with open_file(read_pair(made), device="cpu", threads=4) as session:
            session.run(images())
    for _ in range(3):
        open_file(read_pair(made), device="cpu", threads=4)  # left to the garbage collector
    assert count() == before


def test_two_networks_of_one_shape_at_once(made: Path, converted: DenselyConnected, tmp_path: Path) -> None:
    other = cd.export(build_random(converted.architecture, seed=5), "native", tmp_path / "model.so").path
    with open_file(read_pair(made), device="cpu", threads=1) as alone:
        expected = alone.run(images())
    with open_file(read_pair(other), device="cpu", threads=1) as first, open_file(read_pair(made), device="cpu", threads=1) as second:
        assert np.array_equal(second.run(images()), expected) and not np.array_equal(first.run(images()), expected)
    with open_file(read_pair(other), device="cpu", threads=1) as first:
        assert not np.array_equal(first.run(images()), expected)


def test_threads(made: Path) -> None:
    for threads in (None, 1, 2, 32):
        with open_file(read_pair(made), device="cpu", threads=threads) as session:
            assert session.run(images()).shape == (2, 10)
    with pytest.raises(InputRefused, match="threads is 33; expected at most 32"):
        open_file(read_pair(made), device="cpu", threads=33)


def test_no_more_threads_than_processors(made: Path) -> None:
    """A thread without a processor would be waited for. Tests and measurements get what they ask for, with ``isa``."""
    script = (
        "import os, sys, cnet_deploy as cd\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "before = count()\n"
        "for isa in (None, sys.argv[2]):\n"
        "    for threads in (None, 4):\n"
        "        with cd.open_session(sys.argv[1], threads=threads, **({} if isa is None else {'isa': isa})) as session:\n"
        "            print(count() - before, session.threads)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, made, best_isa(made)], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["0", "1", "0", "1", "0", "1", "3", "4"], "")


def test_sharing(made: Path) -> None:
    with cd.open_session(made, threads=1, sharing="layers") as session:
        assert isinstance(session, NativeSession) and session.reserved
    with pytest.raises(InputRefused, match="the session was closed"):
        _ = session.reserved
    for wrong in ("image", "", 1, None):
        with pytest.raises(InputRefused, match="sharing is .*; expected one of auto, layers, images"):
            cd.open_session(made, sharing=wrong)


def test_without_memory_for_images_layers_are_shared(made: Path) -> None:
    script = (
        "import resource, sys, numpy as np, cnet_deploy as cd\n"
        "from pathlib import Path\n"
        "from cnet_deploy.errors import Unavailable\n"
        "batch = np.random.default_rng(0).standard_normal((9, 3, 32, 32), np.float32)\n"
        "with cd.open_session(sys.argv[1], threads=4, isa=sys.argv[2]) as session:\n"
        "    expected, before = np.concatenate([session.run(image[None]) for image in batch]), session.reserved\n"
        "    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), -1))\n"
        "    assert np.array_equal(session.run(batch), expected) and session.reserved == before\n"
        "    try:\n"
        "        session._share('images')\n"
        "    except Unavailable as error:\n"
        "        print(error)\n"
        "    assert np.array_equal(session.run(batch), expected)\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n"
        "    assert np.array_equal(session.run(batch), expected) and session.reserved > before\n"
    )
    done = subprocess.run([sys.executable, "-c", script, made, best_isa(made)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("out of memory")


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[: len(d) // 2], lambda d: d[:5000] + b"\x90" + d[5001:], lambda d: d + b"x"]
)
def test_other_bytes_are_never_loaded(pair: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    pair.write_bytes(damage(pair.read_bytes()))
    monkeypatch.setattr(native, "_Library", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(InputRefused, match=r"SHA-256 .* but its manifest model.so.json expects"):
        cd.open_session(pair)


def test_a_library_without_manifest_is_refused(pair: Path) -> None:
    pair.with_name("model.so.json").unlink()
    with pytest.raises(InputRefused, match="has no manifest model.so.json beside it, and a library is code that would be run unchecked"):
        cd.open_session(pair)


def test_the_bytes_that_were_checked_are_the_ones_that_run(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is swapped after its digest was taken is not what runs."""
    load = native._Library

    def swap(data: bytes) -> Any:
        pair.write_bytes(b"something else")
        return load(data)

    monkeypatch.setattr(native, "_Library", swap)
    with cd.open_session(pair) as session:
        assert session.run(images()).shape == (2, 10)


def test_without_files_in_memory(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError("no")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with cd.open_session(pair) as session:
        assert session.run(images()).shape == (2, 10)
    monkeypatch.setattr(tempfile, "tempdir", str(pair.with_name("missing")))
    with pytest.raises(Unavailable, match="no temporary folder can be made in .*missing: .*TMPDIR"):
        cd.open_session(pair)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "onnx"}, "its manifest describes no native library"),
        ({"details": {}}, "its manifest describes no native library"),
        ({"precision": "bf16"}, "its manifest describes another network than the library itself"),
        ({"architecture": None}, "its manifest describes another network than the library itself"),
    ],
)
def test_a_manifest_that_lies(pair: Path, changes: dict[str, Any], message: str) -> None:
    change_manifest(pair, **changes)
    with pytest.raises(InputRefused, match=message):
        cd.open_session(pair)


def test_class_names_are_the_library_s_own(converted: DenselyConnected, tmp_path: Path) -> None:
    """They decide what is answered, and a pin covers the library alone."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"class \u00e9 {number}" for number in range(10)), encoding="utf-8")
    path = cd.export(converted, "native", tmp_path / "model.so", labels=labels).path
    pin = digest(path.read_bytes())
    with cd.open_session(path, sha256=pin) as session:
        names = session.class_names
        assert len(names) == 10 and names[3] == "class \u00e9 3"
    for lie in (names[::-1], (*names[:9], "x")):
        change_manifest(path, class_names=lie)
        with pytest.raises(InputRefused, match="its manifest names other classes than the library itself"):
            cd.open_session(path, sha256=pin)
    change_manifest(path, class_names=names)
    cd.open_session(path, sha256=pin).close()


def test_names_in_the_manifest_alone(pair: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As version 0.1.0 kept them."""
    names = tuple("abcdefghij")
    change_manifest(pair, class_names=names)
    with cd.open_session(pair) as session:
        assert session.class_names == names
    with cd.open_session(pair, sha256=digest(pair.read_bytes())) as session:
        assert session.class_names == ()
    assert "model.so: its class names stand in its manifest alone, which the pinned digest does not cover" in caplog.text


def test_a_manifest_that_prepares_images_in_another_way(pair: Path) -> None:
    place = pair.with_name("model.so.json")
    preprocessing = json.loads(place.read_text())["preprocessing"]
    change_manifest(pair, preprocessing={**preprocessing, "mean": [0.0, 0.0, 0.0]})
    with pytest.raises(InputRefused, match="its manifest prepares images in another way than the library itself"):
        cd.open_session(pair)


def test_a_library_for_another_machine(pair: Path) -> None:
    change_manifest(pair, details={"machine": "aarch64", "isas": ["neon"]})
    with pytest.raises(Unavailable, match="is built for aarch64, but this machine is x86_64"):
        cd.open_session(pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a library at all" * 100, "is a text file; expected a library of `export`"),
        (b"\x7fELF" + bytes(12) + b"\2" + bytes(4000), r"is a compiled program \(ELF\); expected a library"),
        (bytes(4000), "can't be loaded as a library"),
        (b"\x7fELF" + bytes(12) + b"\3" + bytes(4000), "can't be loaded as a library"),
    ],
)
def test_what_is_no_library(pair: Path, content: bytes, message: str) -> None:
    pair.write_bytes(content)
    change_manifest(pair, sha256=digest(content), bytes=len(content))
    with pytest.raises(InputRefused, match=message):
        cd.open_session(pair)


def test_a_library_of_somebody_else(pair: Path) -> None:
    import _ctypes

    content = Path(_ctypes.__file__).read_bytes()
    pair.write_bytes(content)
    change_manifest(pair, sha256=digest(content), bytes=len(content))
    with pytest.raises(InputRefused, match="is no library of this tool|can't be loaded as a library"):
        cd.open_session(pair)


def test_what_is_not_there(made: Path) -> None:
    with pytest.raises(Unavailable, match="native libraries run on the CPU"):
        cd.open_session(made, device="cuda")
    with pytest.raises(InputRefused, match=r"model.so: the library carries no code of that name"):
        open_file(read_pair(made), device="cpu", threads=1, isa="altivec")
    with pytest.raises(InputRefused, match="is a shared library, which onnxruntime does not open; expected an ONNX file"):
        cd.open_session(made, backend="onnxruntime")


def test_inspect_reads_the_manifest_alone(pair: Path, converted: DenselyConnected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_Library", lambda _: pytest.fail("it was loaded"))
    found = cd.inspect(pair)
    assert found.container == "native library" and found.architecture == converted.architecture and found.form == "group-conv"
    assert "baseline" in found.summary() and found.details["manifest"]["precision"] == "fp32"
    pair.write_bytes(pair.read_bytes()[:-1])
    with pytest.raises(InputRefused, match="does not belong together"):
        cd.inspect(pair)
    pair.with_name("model.so.json").unlink()
    with pytest.raises(InputRefused, match="has no manifest"):
        cd.inspect(pair)

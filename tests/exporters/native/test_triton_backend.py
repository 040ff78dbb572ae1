"""The backend for Triton Inference Server: what it is built of, what it reads, and what it does where calls fail or memory runs out.

tests/serving runs it in a real server, which does none of that on demand: triton_driver.cpp stands for one here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.exporters.native import toolchain
from cnet_deploy.exporters.native.toolchain import BACKEND, build_backend, find_compiler
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.models.condensenet import DenselyConnected
from tests.cases import examples, long
from tests.exporters.native.helpers import HERE, SANITIZERS

NEWEST = (2, 35)  # the C library of the oldest servers that are supported


def elf(path: Path, *what: str) -> str:
    return subprocess.run(["readelf", "-W", *what, path], capture_output=True, text=True, check=True).stdout


def check_needs(path: Path) -> None:
    assert set(re.findall(r"NEEDED.*\[(.*)\]", elf(path, "-d"))) <= {"libc.so.6", "libdl.so.2"}
    symbols = re.findall(r"(GLOBAL|WEAK)\s+(\w+)\s+(\w+)\s+(\w+)(?:@+(\w+))?", elf(path, "--dyn-syms"))
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", elf(path, "-V"))}
    assert versions and max(versions) <= NEWEST
    undefined = {name for _, _, section, name, version in symbols if section == "UND" and name.startswith("TRITON")}
    declared = set(re.findall(r"\b(TRITON(?:SERVER|BACKEND)_\w+)\(", (BACKEND / "server.h").read_text()))
    assert undefined == declared  # what the server has, and no more than is called
    own = {name for _, visibility, section, name, _ in symbols if section != "UND" and visibility == "DEFAULT"}
    calls = ("Initialize", "Finalize", "ModelInitialize", "ModelFinalize", "ModelInstanceInitialize", "ModelInstanceFinalize")
    assert own == {f"TRITONBACKEND_{call}" for call in (*calls, "ModelInstanceExecute")}


def test_any_server_of_this_machine_can_load_it(tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    system_tool("readelf")
    (tmp_path / "backend.so").write_bytes(build_backend(find_compiler(host_machine())))
    check_needs(tmp_path / "backend.so")


@pytest.mark.parametrize("header", re.findall(r'#include "(.*)"', (BACKEND / "backend.cpp").read_text()))
def test_a_changed_header_is_compiled_again(header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept in the user's cache belongs to all files that it was made of."""
    for name in ("cpp", "triton"):
        shutil.copytree(BACKEND.parent / name, tmp_path / name)
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path / "cpp")
    monkeypatch.setattr(toolchain, "BACKEND", tmp_path / "triton")
    asked: list[str] = []

    def cached(key: str) -> bytes:
        asked.append(key)
        return b"made before"

    monkeypatch.setattr(toolchain, "_from_cache", cached)
    compiler = find_compiler(host_machine())
    for text in ("", "// changed\n", ""):
        (tmp_path / "triton" / header).write_text((BACKEND / header).read_text() + text)
        build_backend(compiler)
    assert asked[0] == asked[2] != asked[1]


@long
@pytest.mark.parametrize("compiler", ["g++", "clang++", "aarch64-linux-gnu-g++", "zig"])
def test_every_compiler_builds_it_the_same_twice(
    compiler: str, tmp_path: Path, system_tool: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system_tool("readelf")
    if compiler == "zig":
        folder = toolchain.subprocesses.package_folder("ziglang")
        assert folder is not None
        found = toolchain._asked((str(folder / "zig"), "c++"), host_machine())
    else:
        found = toolchain._asked((system_tool(compiler),), "aarch64" if "aarch64" in compiler else host_machine())
    monkeypatch.setattr(toolchain, "_from_cache", lambda _: None)
    made = [build_backend(found) for _ in range(2)]
    assert made[0] == made[1] and str(Path.cwd()).encode() not in made[0]
    (tmp_path / "backend.so").write_bytes(made[0])
    check_needs(tmp_path / "backend.so")


class Driver(NamedTuple):
    program: Path
    library: Path  # in a version's folder
    images: Path

    @property
    def repository(self) -> Path:
        return self.library.parents[1]

    def serve(self, config: dict[str, Any], *executions: str, fail: int = 0, **surroundings: str) -> list[list[str]]:
        """The driver's lines, each as its first word and the rest."""
        path = self.repository / "config.json"
        path.write_text(json.dumps(config))
        arguments = ["serve", self.repository, "1", path, self.images, str(fail), *executions]
        done = subprocess.run(
            [self.program, *arguments], capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], **surroundings}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [line.split(" ", 1) for line in done.stdout.splitlines()]

    def refusal(self, config: dict[str, Any], **surroundings: str) -> str:
        lines = self.serve(config, "1:whole", **surroundings)
        assert [line[0] for line in lines if line[0] in ("failed", "logits")] == ["failed"], lines
        return next(rest for word, rest in lines if word == "failed")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, system_tool: Callable[[str], str], converted: DenselyConnected) -> Driver:
    """The backend, with the stand-in for a server, checked for memory that is not its own, leaks, and what C++ does not define."""
    place = tmp_path_factory.mktemp("triton")
    flags = [*SANITIZERS["address,undefined"], "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(BACKEND)]
    wrapped = "-Wl," + ",".join(f"--wrap={call}" for call in ("malloc", "realloc", "posix_memalign", "memfd_create"))
    compiler = system_tool("g++")
    for source, more in ((BACKEND / "backend.cpp", ["-fno-exceptions", "-fno-rtti"]), (HERE / "triton_driver.cpp", [])):
        subprocess.run([compiler, *flags, *more, "-c", source, "-o", place / f"{source.stem}.o"], check=True)
    objects = [place / "backend.o", place / "triton_driver.o"]
    subprocess.run([compiler, *flags, wrapped, *objects, "-o", place / "driver", "-ldl", "-pthread"], check=True)
    (place / "m/1").mkdir(parents=True)
    library = cd.export(converted, "native", place / "m/1/model.so", cpu="host").path
    np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32).tofile(place / "images")
    return Driver(place / "driver", library, place / "images")


def config(**changes: Any) -> dict[str, Any]:
    """A configuration as the server hands it to a backend."""
    made: dict[str, Any] = {
        "name": "m", "backend": "cnet", "max_batch_size": 32, "default_model_filename": "model.so",
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 32, 32]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}], "parameters": {"threads": {"string_value": "1"}},
    }  # fmt: skip
    return {**made, **changes}


def answers(lines: list[list[str]]) -> list[np.ndarray[Any, Any] | str]:
    """The logits of each request, or its error; of one that wants none an empty array."""
    return [
        np.frombuffer(bytes.fromhex(rest), np.float32) if word == "logits" else rest for word, rest in lines if word in ("logits", "error")
    ]


@long
def test_images_in_every_form(driver: Driver) -> None:
    """Each request has its own answer, to the bit, whatever the others of its batch are."""
    with cd.open_session(driver.library, threads=1) as session:
        expected = session.run(np.fromfile(driver.images, np.float32).reshape(-1, 3, 32, 32))
    wrong = {
        "few": "input has 12284 bytes; expected 12288, for 1 images of 3 x 32 x 32 float32",
        "fewer": "input has fewer bytes in its buffers than it states",
        "more": "input has more bytes in its buffers than it states",
        "none": "input has fewer bytes in its buffers than it states",
        "no-dimension": "input has 0 images; expected 1 to 32",
        "type": "input has another type than float32; send the images as FP32",
        "gpu": "input is in a GPU's memory; send it in the processor's",
        "output-gpu": "the logits are wanted in a GPU's memory; ask for them in the processor's",
    }  # fmt: skip
    right = ["whole", "pieces", "misaligned", "pinned", "output-misaligned"]
    alone = [f"{count}:{kind}" for kind in right for count in (1, 3)]
    together = ",".join(f"2:{kind}" for kind in right)
    mixed = ",".join(f"1:{kind}" for pair in zip([*wrong], ["whole", "unwanted", *right, "whole"], strict=False) for kind in pair)
    lines = driver.serve(config(), *alone, together, mixed, "33:whole", "32:pieces", *(f"1:{kind}" for kind in wrong))
    found = iter(answers(lines))

    def same(first: int, count: int) -> None:
        logits = next(found)
        assert isinstance(logits, np.ndarray) and np.array_equal(logits.reshape(-1, 10), expected[first : first + count])

    for case in alone:
        same(0, int(case[0]))
    for number in range(len(right)):
        same(2 * number, 2)
    for number, case in enumerate(mixed.split(",")):
        kind = case.partition(":")[2]
        if kind in wrong:
            assert next(found) == f"cnet: {wrong[kind]}"
        elif kind == "unwanted":
            assert len(next(found)) == 0
        else:
            same(number, 1)
    assert next(found) == "cnet: input has 33 images; expected 1 to 32"
    same(0, 32)
    assert list(found) == [f"cnet: {message}" for message in wrong.values()]
    assert ["batch", "10"] in lines and ["batch", "32"] in lines


@long
def test_requests_without_a_dimension_for_the_batch(driver: Driver) -> None:
    with cd.open_session(driver.library, threads=1) as session:
        expected = session.run(np.fromfile(driver.images, np.float32).reshape(-1, 3, 32, 32)[:1])
    (logits,) = answers(driver.serve(config(max_batch_size=0), "1:whole", DRIVER_UNBATCHED="1"))
    assert np.array_equal(logits, expected[0])


@long
def test_any_call_may_fail(driver: Driver) -> None:
    """Whichever call of the server fails, and wherever there is no memory: every request has one answer, is released, nothing leaks."""
    executions = ["1:whole", "2:pieces,1:whole,1:misaligned", "1:gpu,1:whole"]
    ((_, calls),) = (line for line in driver.serve(config(), *executions) if line[0] == "calls")
    assert int(calls) > 80
    ends, whole = set(), answers(driver.serve(config(), *executions))
    for number in range(1, int(calls) + 1):
        lines = driver.serve(config(), *executions, fail=number)
        ends |= {word for word, _ in lines}
        if ["elsewhere", "from /tmp"] in lines:  # no files in memory: it is loaded all the same
            assert [str(answer) for answer in answers(lines)] == [str(answer) for answer in whole]
    assert ends == {"failed", "error", "logits", "batch", "calls", "log", "elsewhere"}


@long
def test_a_configuration_of_another_network(driver: Driver) -> None:
    def tensor(name: str, dims: list[Any], kind: str = "TYPE_FP32") -> list[dict[str, Any]]:
        return [{"name": name, "data_type": kind, "dims": dims}]

    again = "export the model again: cnet-deploy export MODEL --native --triton FOLDER"
    for changes, message in (
        (
            {"input": tensor("input", [3, 64, 16])},
            "has dims [3, 64, 16] for the input, and the library has [3, 32, 32]; correct config.pbtxt",
        ),
        ({"input": tensor("input", [3, 32, -1])}, "has dims [3, 32, -1] for the input"),
        ({"input": tensor("input", [3, 32])}, "has dims [3, 32] for the input"),
        ({"input": tensor("image", [3, 32, 32])}, f'calls the input "image"; expected "input": correct it, or {again}'),
        ({"input": tensor("input", [3, 32, 32], "TYPE_FP16")}, 'has the input of type "TYPE_FP16"; expected TYPE_FP32'),
        ({"input": []}, 'has 0 tensors under input; expected one, "input"'),
        ({"output": tensor("logits", [100])}, "has dims [100] for the output, and the library has [10]"),
        ({"output": tensor("logits", [10]) * 2}, 'has 2 tensors under output; expected one, "logits"'),
        ({"input": [{**tensor("input", [3, 32, 32])[0], "reshape": {"shape": [3072]}}]}, 'has reshape {"shape": [3072]} for the input'),
        ({"instance_group": [{"count": 1, "kind": "KIND_CPU", "passive": True}]}, "has a passive instance_group"),
        ({"max_batch_size": 1 << 30}, "has max_batch_size 1073741824; expected 0 to 1048576"),
        *(
            ({"parameters": {"threads": {"string_value": text}}}, f'has the parameter threads "{text}"; expected a number from 1 to 32')
            for text in ("0", "33", "two", "", "-1", "1.5", "02", "9" * 20)
        ),
        ({"default_model_filename": "other.so"}, "other.so.json can't be read: No such file or directory"),
    ):
        assert message in driver.refusal(config(**changes)), changes
    assert "[ { kind: KIND_CPU } ]" in driver.refusal(config(), DRIVER_GPU="1")
    assert "version 2.0 of the interface for backends; expected 1.0 or a later 1.x" in driver.refusal(config(), DRIVER_MAJOR="2")
    assert answers(driver.serve(config(input=tensor("input", ["3", "32", "32"]), unknown={"a": [None]}), "1:whole"))


@long
def test_threads_and_processors(driver: Driver) -> None:
    usable = len(os.sched_getaffinity(0))
    many = config(instance_group=[{"count": usable}, {"count": 1}])
    (line,) = (rest for word, rest in driver.serve(many, "1:whole") if word == "log")
    assert f"{usable + 1} instances of 1 threads are more than the {usable} processors that the server may use" in line
    if usable < 32:
        more = driver.serve(config(parameters={"threads": {"string_value": str(usable + 1)}}), "1:whole")
        (line,) = (rest for word, rest in more if word == "log")
        assert f"{usable + 1} threads, and the server may use {usable} processors: no more run in an instance" in line
    for stated in (config(parameters={}), config(parameters={}, instance_group=[{"count": usable}])):
        assert not [line for line in driver.serve(stated, "1:whole") if line[0] == "log"]
    for quota, period, processors in (
        ("max", " 100000", 0), ("100000", " 100000", 1), ("150000 100000", " 100000", 2), ("-1\n", "100000\n", 0), ("1", "100000", 1),
        ("400000\n", "100000\n", 4), ("", "", 0), ("5", "0", 0), ("9" * 40, "1", 1 << 40),
    ):  # fmt: skip
        done = subprocess.run([driver.program, "quota", quota, period], capture_output=True, text=True, check=True)
        assert int(done.stdout) >= processors if len(quota) == 40 else int(done.stdout) == processors, (quota, period)


@long
def test_a_damaged_pair(driver: Driver, tmp_path: Path) -> None:
    """What is loaded is what the manifest states, or nothing."""
    data, text = driver.library.read_bytes(), manifest_path(driver.library).read_bytes()
    stated = json.loads(text)
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    mine = driver._replace(library=version / "model.so")

    def refusal(library: bytes | None, manifest: bytes | None) -> str:
        for path, content in ((mine.library, library), (manifest_path(mine.library), manifest)):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        return mine.refusal(config())

    def of_bytes(content: bytes, **changes: Any) -> bytes:
        return json.dumps({**stated, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **changes}).encode()

    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    assert re.search(
        r"model\.so has SHA-256 [0-9a-f]{16}\.\.\., and its manifest states .*the pair does not belong together",
        refusal(bytes(flipped), text),
    )
    assert f"has {len(data) - 1} bytes, and its manifest states {len(data)}; the pair" in refusal(data[:-1], text)
    assert "model.so can't be read: No such file" in refusal(None, text)
    assert "model.so.json can't be read: No such file" in refusal(data, None)
    for broken, message in (
        (text[:200], "is no manifest (it is cut off)"), (b"\xff", "is no manifest (it is no JSON)"),
        (b"", "is no manifest (it is cut off)"),
        (b"[" * 10000, "is no manifest (it is nested more than 64 deep)"), (text + b" " * (4 << 20), "expected at most 4194304"),
        (b'{"a": 1, "a": 2}', "an object with two members of one name"), (b"[]", "cnet_deploy_manifest is nothing; expected 1"),
        (of_bytes(data, cnet_deploy_manifest=2), "cnet_deploy_manifest is 2; expected 1"),
        (of_bytes(data, target="onnx"), 'describes no native library (target "onnx"; expected "native")'),
        (of_bytes(data, details={"machine": "riscv\x1b"}), r'the library is for "riscv\u001b", and this server runs on'),
        (of_bytes(data, details=[]), "the library is for nothing, and this server runs on"),
        (of_bytes(data, sha256="0"), "states no size and SHA-256"), (of_bytes(data, bytes=-1), "states no size and SHA-256"),
    ):  # fmt: skip
        assert message in refusal(data, broken), message
    text_only = b"no library at all"
    assert "can't be loaded as a library (file too short)" in refusal(text_only, of_bytes(text_only))
    foreign = build_backend(find_compiler(host_machine()))  # a library, but its functions are undefined here
    assert "can't be loaded as a library (undefined symbol" in refusal(foreign, of_bytes(foreign))
    mine.library.unlink()
    os.mkfifo(mine.library)
    assert "model.so is no regular file" in mine.refusal(config())


class Reader:
    """One process that reads documents line by line."""

    def __init__(self, program: Path, what: str) -> None:
        self.process = subprocess.Popen([program, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, content: bytes) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(content.hex() + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line.endswith("\n"), "the reader has ended"
        return line[:-1]

    def close(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def json_reader(driver: Driver) -> Iterator[Reader]:
    reader = Reader(driver.program, "json")
    yield reader
    reader.close()


def printed(value: Any) -> str:
    """What the driver prints for a value of Python's reader (objects as tuples of pairs, numbers as they were written)."""
    if isinstance(value, str):
        return "s" + value.encode().hex()
    if isinstance(value, tuple):
        return "{" + "".join(f" {printed(item)}" for pair in value for item in pair) + "}"
    if isinstance(value, list):
        return "[" + "".join(f" {printed(item)}" for item in value) + "]"
    return value.text if isinstance(value, Number) else {True: "true", False: "false", None: "null"}[value]


@dataclass(frozen=True)
class Number:
    text: str


def by_python(content: bytes) -> str | None:
    """The same by Python's reader; None for what is to be refused."""

    def unique(pairs: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
        if len({key for key, _ in pairs}) < len(pairs) or len(pairs) > 1024:
            raise ValueError
        return tuple(pairs)

    def refuse(_: str) -> None:
        raise ValueError

    def depth(value: Any) -> int:
        if isinstance(value, Number) or not isinstance(value, (tuple, list)):
            return 0
        inner = [item for pair in value for item in pair] if isinstance(value, tuple) else value
        return 1 + max(map(depth, inner), default=0)

    numbers = {"parse_int": Number, "parse_float": Number, "parse_constant": refuse}
    try:
        value = json.loads(content.decode(), object_pairs_hook=unique, **numbers)
        return None if depth(value) > 64 else printed(value)
    except (ValueError, RecursionError):
        return None


def agrees(reader: Reader, content: bytes) -> bool:
    """Whether both read the same, or both refuse. True where it was read."""
    expected, found = by_python(content), reader(content)
    assert (expected is None and found.startswith("! ")) or expected == found, (content, expected, found)
    return expected is not None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@long
@given(value=VALUES, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 2), seed=st.integers(0, 1 << 30))
@examples(500)
def test_json_is_read_as_python_reads_it(json_reader: Reader, value: Any, ascii_only: bool, indent: int | None, seed: int) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert agrees(json_reader, content)
    chance = random.Random(seed)
    for _ in range(5):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(changed) + 1)
            changed[at : at + chance.randint(0, 2)] = chance.choice(
                [b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"\x80", b"\\u00e9", b" "]
            )
        agrees(json_reader, bytes(changed))


@long
def test_hostile_json(json_reader: Reader) -> None:
    good = [
        b"{}", b" [ ] ", b'"\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\"\\\\"', b"-0", b"0.5e-10", b"1E+2",
        b'{"a":{"a":{"a":[]}}}', b"[" * 64 + b"]" * 64,
        "\"ü€😀\x7f\"".encode(), b'{"\\u0061":1,"b":2}', b'{"":0}', json.dumps({str(n): n for n in range(1024)}).encode(),
    ]  # fmt: skip
    bad = [
        b"", b" ", b"{", b"}", b"[1,]", b"[,1]", b'{"a":1,}', b'{"a"}', b"{1:2}", b'{"a":1 "b":2}', b"[1 2]", b"01",
        b"-", b"1.", b".5", b"1e", b"+1",
        b"0x1", b"NaN", b"Infinity", b"-Infinity", b"nul", b"True", b"'a'", b'"a', b'"\\', b'"\\"', b'"\\x"',
        b'"\\u12"', b'"\\u12g4"', b'"\\ud800"',
        b'"\\ud800\\u0041"', b'"\\udc00"', b'"\n"', b'"\x00"', b"\x00", b"[]\x00", b"\xef\xbb\xbf{}", b'"\xff"',
        b'"\xc0\x80"', b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"', b'"\xe2\x82"', b'"\xe2\x82', b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}',
        b'{"\\u00e9":1,"\xc3\xa9":2}', b"[]]", b"{}{}",
        b"[" * 65 + b"]" * 65, b"[" * 1000000,
        b'{"a":' * 100000, json.dumps({str(n): n for n in range(1025)}).encode(), b"/**/1", b"\x0b1",
    ]  # fmt: skip
    assert all(agrees(json_reader, content) for content in good)
    assert not any(agrees(json_reader, content) for content in bad)


@long
def test_sha256_is_pythons(driver: Driver) -> None:
    reader = Reader(driver.program, "sha256")
    chance = random.Random(0)
    for size in (*range(130), 1000, 65536, 1 << 20):
        content = chance.randbytes(size)
        assert reader(content) == hashlib.sha256(content).hexdigest()
    reader.close()

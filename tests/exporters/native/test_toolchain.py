"""toolchain.py: which compiler, for which processor, and what is said where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy import subprocesses
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.exporters.native import toolchain
from cnet_deploy.exporters.native.toolchain import find_compiler, resolve
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions.native import open_file
from tests.builders import TINY
from tests.cases import exhaustive, few, long
from tests.exporters.native.helpers import drive, driver, exact, images_for, isas, library, network
from tests.old_outputs import old_output

x86_only = pytest.mark.skipif(host_machine() != "x86_64", reason="targets of x86")


@x86_only
def test_targets() -> None:
    assert resolve(None, "fp32").isas == ("avx512", "avx2", "baseline")
    assert resolve(None, "bf16").isas == ("avx512_bf16", "avx2", "baseline")
    assert resolve("x86-64-v3", "fp32").isas == ("avx2",)
    assert resolve("x86-64-v4", "bf16").isas == ("avx512_bf16", "avx512")
    assert resolve("aarch64", "bf16") == toolchain.Processor("aarch64", ("neon",))
    assert resolve("host", "fp32").isas == (isas()[0],) and resolve("host", "bf16").isas == (isas("bf16")[0],)
    with pytest.raises(InputRefused, match=r"no processor is called 'z80' here; expected one of host, x86-64-v3"):
        resolve("z80", "fp32")


def test_host_isas_agree_with_the_library(tmp_path: Path) -> None:
    """Python reads /proc/cpuinfo, the library asks the processor."""
    path = cd.export(network(TINY), "native", tmp_path / "m.so").path
    with open_file(read_pair(path), device="cpu", threads=1) as session:
        assert session.isa == isas()[0]
    assert host_isas()[-1] == "baseline"


def test_cxx_comes_first(monkeypatch: pytest.MonkeyPatch, system_tool: Callable[[str], str]) -> None:
    assert "g++" in find_compiler(host_machine()).command[0]
    monkeypatch.setenv("CXX", f"{system_tool('clang++')} -pipe")
    compiler = find_compiler(host_machine())
    assert compiler.command[1:] == ("-pipe",) and "clang" in compiler.version


@long
@pytest.mark.parametrize(("precision", "cpu"), few([("fp32", "host"), ("fp32", None), ("bf16", None)]))
def test_clang_compiles_the_same_network(
    precision: str, cpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_tool: Callable[[str], str]
) -> None:
    monkeypatch.setenv("CXX", system_tool("clang++"))
    model = network(TINY)
    done = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1, cpu=cpu)
    assert "clang" in done.manifest.details["compiler"]
    images = images_for(model, 2)
    expected = exact(model, images)
    for isa in isas(precision)[: 1 if cpu else None]:
        with open_file(read_pair(done.path), device="cpu", threads=2, isa=isa) as session:
            error = abs(session.run(images) - expected).max() / abs(expected).max()
            assert error <= (1e-5 if precision == "fp32" else 3e-2)


@pytest.mark.parametrize(
    ("cxx", "message"),
    [
        (
            "/no/such/compiler",
            r"\$CXX is '/no/such/compiler', which does not run as a C\+\+ compiler: `/no/such/compiler --version` can't be run: No such "
            r"file or directory; correct or unset it, or install one",
        ),
        ("false", r"which does not run as a C\+\+ compiler"),
        ("g++ 'x", r"which does not run as a C\+\+ compiler: it can't be split into words"),
        ("no-such-g++", r"no program called no-such-g\+\+ is on \$PATH"),
        ("/bin/true", r"`/bin/true -dumpmachine` printed nothing; expected a machine, as x86_64-linux-gnu"),
        ("/bin/echo x86_64-", r"printed 'x86_64- -dumpmachine'; expected a machine"),
        ("/bin/sh -c 'kill -9 $$'", r"was ended by signal 9"),
    ],
)
@x86_only
def test_a_cxx_that_is_none(cxx: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(Unavailable, match=message):
        find_compiler("x86_64")


@x86_only
def test_a_cxx_for_another_machine(monkeypatch: pytest.MonkeyPatch, system_tool: Callable[[str], str]) -> None:
    monkeypatch.setenv("CXX", system_tool("aarch64-linux-gnu-g++"))
    with pytest.raises(Unavailable, match=r"aarch64-linux-gnu-g\+\+\) compiles for aarch64; expected x86_64"):
        find_compiler("x86_64")


def test_no_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocesses, "package_folder", lambda _: None)
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler was found; install one \(Debian: apt-get install g\+\+\)"):
        find_compiler(host_machine())
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler for riscv64 \(riscv64-linux-gnu-g\+\+\) was found"):
        find_compiler("riscv64")


def test_a_compiler_that_fails_is_quoted_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-g++"
    broken.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo broken 1.0;; -dumpmachine) echo {host_machine()}-linux-gnu;;"
        ' *) echo "kernels.cpp:1: error: this is no compiler" >&2; exit 1;; esac\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    old = old_output(tmp_path / "m.so")
    with pytest.raises(Unavailable, match=r"error: this is no compiler; expected GCC 11 or Clang 12 and newer"):
        cd.export(network(TINY), "native", tmp_path / "m.so")
    assert (tmp_path / "m.so").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken-g++", "m.so"]


def test_a_compiler_that_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = tmp_path / "idle-g++"
    idle.write_text(f"#!/bin/sh\ncase $1 in -dumpmachine) echo {host_machine()}-linux-gnu;; esac\n")
    idle.chmod(0o755)
    monkeypatch.setenv("CXX", str(idle))
    with pytest.raises(Unavailable, match=r"`\S*idle-g\+\+` ended without an error, but wrote no \.o file; install one"):
        cd.export(network(TINY), "native", tmp_path / "m.so")


@pytest.mark.parametrize(("limit", "amount"), [("RLIMIT_FSIZE", 100), ("RLIMIT_NOFILE", 3)])
def test_a_limit_is_named(limit: str, amount: int, tmp_path: Path) -> None:
    script = (
        "import resource, sys\nfrom cnet_deploy.exporters.native import toolchain as t\nfrom cnet_deploy.errors import Unavailable\n"
        f"what, most = resource.{limit}, max({amount}, len(__import__('os').listdir('/proc/self/fd')) - 1)\n"
        "compiler = t.Compiler(('/bin/true',), '', t.host_machine())\n"
        "import concurrent.futures.thread, tempfile; tempfile.gettempdir()\n"
        "resource.setrlimit(what, (most, most))\n"
        "try: t.build(compiler, ('baseline',), precision='fp32', source='x' * 1000, weights=b'', out=None)\n"
        "except Unavailable as error: print(error)\n"
    )
    done = subprocesses.run([sys.executable, "-c", script], seconds=100, foreign=True)
    assert done.stdout.strip().endswith("; raise the limit (ulimit)"), done


@long
@pytest.mark.parametrize("quickly", few([True, False]))
def test_the_same_network_gives_the_same_bytes(
    quickly: bool, quick_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quickly:
        monkeypatch.setenv("CXX", str(quick_compiler))
    model = network(TINY)
    first = cd.export(model, "native", tmp_path / "a.so", cpu="host").path.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))  # compiled again
    (tmp_path / "b").mkdir()
    assert cd.export(model, "native", tmp_path / "b" / "a.so", cpu="host").path.read_bytes() == first
    assert list((tmp_path / "elsewhere" / "cnet-deploy" / "native").glob("*.o"))
    for place in (os.fspath(tmp_path), str(toolchain.SOURCES), str(Path.home())):
        assert place.encode() not in first


@long
def test_a_damaged_cache_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_compiler: Path) -> None:
    monkeypatch.setenv("CXX", str(quick_compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = cd.export(network(TINY), "native", tmp_path / "m.so", cpu="x86-64-v3" if "avx2" in isas() else "host").path.read_bytes()
    kept = list((tmp_path / "cache" / "cnet-deploy" / "native").iterdir())
    assert len(kept) == 4
    for path, damage in zip(kept, (lambda data: data[:-5], lambda _: b"", lambda data: data[:300] + b"?" + data[301:]), strict=False):
        path.write_bytes(damage(path.read_bytes()))
    assert cd.export(network(TINY), "native", tmp_path / "m.so", cpu="x86-64-v3" if "avx2" in isas() else "host").path.read_bytes() == first
    assert sorted((tmp_path / "cache" / "cnet-deploy" / "native").iterdir()) == sorted(kept)


@long
def test_a_relative_cxx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_compiler: Path) -> None:
    (tmp_path / "g++").symlink_to(quick_compiler)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "./g++")
    assert cd.export(network(TINY), "native", tmp_path / "m.so", cpu="x86-64-v3" if "avx2" in isas() else "host").path.exists()


@long
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_compiler: Path) -> None:
    monkeypatch.setenv("CXX", str(quick_compiler))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cd.export(network(TINY), "native", tmp_path / "m.so", cpu="x86-64-v3" if "avx2" in isas() else "host").path.exists()


def test_the_compiler_from_pypi_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="needs the extra: cnet-deploy[compiler]")
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = find_compiler(host_machine())
    assert compiler.command[1] == "c++" and compiler.is_zig and "clang" in compiler.version


@exhaustive("test_the_compiler_from_pypi_answers")
def test_the_compiler_from_pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_tool: Callable[[str], str]) -> None:
    """ziglang, with nothing of the system's on the path: for this machine and for another."""
    pytest.importorskip("ziglang", reason="needs the extra: cnet-deploy[compiler]")
    model = network(TINY)
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "empty"))
        path = cd.export(model, "native", tmp_path / "m.so", cpu="x86-64-v3" if "avx2" in isas() else "host").path
        assert find_compiler(host_machine()).is_zig
        other = library(model, tmp_path / "other.so", ("neon",), machine="aarch64")
    images = images_for(model, 1)
    expected = exact(model, images)
    with open_file(read_pair(path), device="cpu", threads=2) as session:
        assert abs(session.run(images) - expected).max() <= 1e-5 * abs(expected).max()
    images.tofile(tmp_path / "images")
    system_tool("aarch64-linux-gnu-gcc")
    program = driver(tmp_path / "driver", other, compiler=("aarch64-linux-gnu-gcc",))
    under = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu")
    done = drive(program, "run", "best", 1, 1, 3072, 10, tmp_path / "images", tmp_path / "logits", under=under)
    assert (done.returncode, done.stdout.strip()) == (0, "neon"), done.stderr


def test_only_the_family_is_compiled() -> None:
    from cnet_deploy.exporters.native import write
    from cnet_deploy.models.build import build_named

    with pytest.raises(InputRefused, match="only CondenseNet, DenseNet and their kin are compiled"):
        write(build_named("resnet-18"), Path("never.so"))
    with pytest.raises(InputRefused, match="precision 'int4'; expected one of fp32, bf16, int8"):
        write(lower(network(TINY)), Path("never.so"), precision="int4")

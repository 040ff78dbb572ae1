"""The C++ compiler: which one, for which processor, and what it makes of the sources."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable, printable
from cnet_deploy.exporters.native.planning import weights_name
from cnet_deploy.files import atomic_output, digest
from cnet_deploy.hardware.cpu import host_isas, host_machine

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
TARGETS = ("host", "x86-64-v3", "x86-64-v4", "aarch64")
HOW = (
    "install one (Debian: apt-get install g++), or the compiler that comes as a Python package: pip install 'cnet-deploy[compiler]'; "
    "$CXX overrides what is found"
)

# Instruction set -> flags. The names are namespaces in the library, and what cnet_create_for takes.
_FLAGS = {
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
    "baseline": ("-march=x86-64",),
    "neon": ("-march=armv8-a",),
}
_ZIG_FLAGS = {
    "avx512_bf16": ("-mcpu=x86_64_v4+avx512bf16",),
    "avx512": ("-mcpu=x86_64_v4",),
    "avx2": ("-mcpu=x86_64_v3",),
    "baseline": ("-mcpu=x86_64",),
    "neon": ("-mcpu=generic",),
}
# No -ffast-math: reassociation would break up the chains of multiply-adds, and NaN must stay NaN.
_COMMON = (
    "-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti",
    "-fvisibility=hidden", "-fno-asynchronous-unwind-tables", "-fno-threadsafe-statics", "-Wall", "-Wextra", "-Wno-psabi",
    "-Wno-ignored-attributes", "-Wno-unknown-warning-option",
)  # fmt: skip
# Of prepare.cpp every processor must make the same pixels.
_ENGINE: dict[str, tuple[str, ...]] = {"engine.cpp": (), "threads.cpp": (), "prepare.cpp": ("-ffp-contract=off",)}
_PLAN = ("-Werror=missing-field-initializers",)  # so that no field of plan.h is left out


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command it is called by, its version in one line, the processor family it compiles for."""

    command: tuple[str, ...]
    version: str
    machine: str

    @property
    def is_zig(self) -> bool:
        return any("zig" in Path(word).name for word in self.command)

    def flags(self, isa: str) -> tuple[str, ...]:
        return (_ZIG_FLAGS if self.is_zig else _FLAGS)[isa]


@dataclass(frozen=True)
class Processor:
    """Whose processor a library is for: the machine, and the instruction sets that it carries, the best first."""

    machine: str
    isas: tuple[str, ...]


def resolve(target: str | None, precision: str) -> Processor:
    """The processors that ``target`` names; None: all of this machine's family. Raises InputRefused for an unknown name."""
    bf16 = ("avx512_bf16",) if precision == "bf16" else ()
    machine = host_machine()
    if target is None:
        if machine == "x86_64":
            return Processor(machine, (*(bf16 or ("avx512",)), "avx2", "baseline"))
        return Processor(machine, ("neon",) if machine == "aarch64" else ("baseline",))
    if target == "host":
        known = resolve(None, precision)
        return Processor(machine, (next(isa for isa in (*bf16, *known.isas) if isa in host_isas()),))
    choices = {
        "x86-64-v3": Processor("x86_64", ("avx2",)),
        "x86-64-v4": Processor("x86_64", (*bf16, "avx512")),
        "aarch64": Processor("aarch64", ("neon",)),
    }
    if target not in choices:
        raise InputRefused(f"no processor is called {printable(target)!r} here; expected one of {', '.join(TARGETS)}")
    return choices[target]


def find_compiler(machine: str) -> Compiler:
    """``$CXX``, else the system's, else the one in the package ``ziglang``. Raises Unavailable where there is none."""
    if wanted := os.environ.get("CXX"):
        compiler = _asked(_words(wanted), machine)
        if compiler is None:
            raise Unavailable(f"$CXX is {printable(wanted)!r}, which does not run as a C++ compiler; correct or unset it, or {HOW}")
        if compiler.machine != machine:
            raise Unavailable(
                f"$CXX ({printable(wanted)}) compiles for {compiler.machine}; expected {machine}: set $CXX to such a compiler"
            )
        return compiler
    native = machine == host_machine()
    for name in ("g++", "clang++") if native else (f"{machine}-linux-gnu-g++",):
        if (path := shutil.which(name)) and (compiler := _asked((path,), machine)) and compiler.machine == machine:
            return compiler
    if importlib.util.find_spec("ziglang") and (compiler := _asked((sys.executable, "-m", "ziglang", "c++"), machine)):
        return compiler
    what = "C++ compiler" if native else f"C++ compiler for {machine} ({machine}-linux-gnu-g++)"
    raise Unavailable(f"no {what} was found; {HOW}")


def _words(command: str) -> tuple[str, ...]:
    """A command's words, with the path of its program made absolute; empty if the command can't be parsed."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ()
    if words and "/" in words[0]:
        words[0] = str(Path(words[0]).absolute())
    return tuple(words)


def _asked(command: tuple[str, ...], machine: str) -> Compiler | None:
    """The compiler that a command runs, by its own answers; None if it does not answer as one."""
    if not command:
        return None
    zig = any("zig" in Path(word).name for word in command)
    if zig:
        command = (*command, "-target", f"{machine}-linux-gnu")
    try:
        version, dumped = (
            subprocess.run([*command, option], capture_output=True, text=True, timeout=120, check=True).stdout.strip()
            for option in ("--version", "-dumpmachine")
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Compiler(command, version.splitlines()[0] if version else "", machine if zig else dumped.split("-")[0])


def build(compiler: Compiler, isas: Sequence[str], *, precision: str, source: str, weights: bytes, out: Path,
          defines: Sequence[str] = (), extra: Sequence[str] = (), soname: str | None = None) -> None:  # fmt: skip
    """Compile the sources and a plan into the shared library ``out``. The same input gives the same bytes.

    ``defines`` are the plan's. ``soname`` is left out where its characters mean something to the linker. ``extra`` flags are for builds
    that check themselves (sanitizers, -DCNET_DEBUG). Raises Unavailable with the compiler's first complaint if it fails.
    """
    with _scratch() as place:
        (place / "plan.cpp").write_text(source, encoding="utf-8")
        (place / weights_name(weights)).write_bytes(weights)
        jobs: list[tuple[str, str, tuple[str, ...]]] = [
            (name, "baseline" if compiler.machine == "x86_64" else isas[-1], (*flags, *defines)) for name, flags in _ENGINE.items()
        ]
        jobs += [("kernels.cpp", isa, (*_isa_defines(isa, precision), *defines)) for isa in isas]
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(lambda job: _object(compiler, *job, extra=extra, scratch=place), jobs))
        _run([*compiler.command, *plan_flags(precision, defines), *extra, "-c", "plan.cpp", "-o", "plan.o"], place)
        for number, content in enumerate(objects):
            (place / f"{number}.o").write_bytes(content)
        names = [f"{number}.o" for number in range(len(objects))]
        named = [f"-Wl,-soname,{soname}"] if soname is not None and re.fullmatch(r"[\w.+-]+", soname) else []
        _run(
            [*compiler.command, *extra, "-shared", "-pthread", "-Wl,--as-needed,-Bsymbolic,--build-id=none,-z,relro,-z,now,-z,noexecstack",
             "-Wl,--no-undefined" if not extra else "-Wl,--as-needed", "-s" if not extra else "-g", *named, "-o",
             "library.so", *names, "plan.o"],
            place,
        )  # fmt: skip
        library = (place / "library.so").read_bytes()
    out.write_bytes(library)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder to compile in. Raises Unavailable where none can be made or the disk is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="cnet-deploy-native-") as folder:
            yield Path(folder)
    except OSError as error:
        raise Unavailable(f"{tempfile.gettempdir()}: nothing can be compiled there: {error.strerror or error}; set TMPDIR") from None


def _isa_defines(isa: str, precision: str) -> tuple[str, ...]:
    return (f"-DCNET_ISA={isa}", f'-DCNET_ISA_NAME="{isa}"', f"-DCNET_BF16={int(precision == 'bf16')}")


def plan_flags(precision: str, defines: Sequence[str] = ()) -> tuple[str, ...]:
    """What plan.cpp is compiled with. It has no code, and so no flags of an instruction set."""
    return (*_COMMON, *_PLAN, f"-DCNET_BF16={int(precision == 'bf16')}", *defines, "-I", str(SOURCES))


def _object(compiler: Compiler, name: str, isa: str, defines: Sequence[str], *, extra: Sequence[str], scratch: Path) -> bytes:
    """One object file: from the user's cache if the same compiler compiled the same sources with the same flags before."""
    flags = [*_COMMON, *compiler.flags(isa), *extra, *defines]
    content = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.is_file())
    key = hashlib.sha256(repr((compiler, name, flags, hashlib.sha256(content).hexdigest())).encode()).hexdigest()
    if (cached := _from_cache(key)) is not None:
        log.info("%s for %s: compiled before", name, isa)
        return cached
    log.info("compiling %s for %s with %s", name, isa, compiler.version)
    made = scratch / f"{key}.o"
    # By its relative name, so that no path of this machine gets into the object.
    _run([*compiler.command, *flags, "-c", name, "-o", str(made)], SOURCES, scratch)
    data = made.read_bytes()
    _to_cache(key, data)
    return data


def _from_cache(key: str) -> bytes | None:
    """A cached object, if it is undamaged: its SHA-256 stands before it."""
    with contextlib.suppress(OSError, RuntimeError):
        kept = (_cache() / f"{key}.o").read_bytes()
        if kept[:64] == digest(kept[64:]).encode():
            return kept[64:]
    return None


def _to_cache(key: str, data: bytes) -> None:
    """Cache an object, if that is possible."""
    with contextlib.suppress(OSError, RuntimeError, OutputRefused):
        folder = _cache()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_output(folder / f"{key}.o") as temporary:
            temporary.write_bytes(digest(data).encode() + data)


def _cache() -> Path:
    """Where compiled kernels are kept between exports, a megabyte or two for each version of them, compiler and precision."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cnet-deploy" / "native"


def _run(command: Sequence[str], folder: Path, scratch: Path | None = None) -> None:
    """Run a command in ``folder``. Its temporary files go to ``scratch`` or there too, since $TMPDIR may not exist."""
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", "TMPDIR": str(scratch or folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{command[0]} can't be run: {error.strerror}; {HOW}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        complaint = next((line for line in lines if "error" in line or "undefined" in line), lines[-1])
        raise Unavailable(f"{' '.join(command[:3])} … failed: {printable(complaint)}; expected GCC 11 or Clang 12 and newer: {HOW}")

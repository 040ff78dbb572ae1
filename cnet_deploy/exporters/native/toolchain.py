"""The C++ compiler: which one, for which processor, and what it makes of the sources."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnet_deploy import subprocesses
from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.exporters.native.planning import weights_name
from cnet_deploy.files import LIMITS, cache, digest, temporary_folder
from cnet_deploy.hardware.cpu import host_isas, host_machine

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"
BACKEND = Path(__file__).parent / "triton"  # of Triton Inference Server; it includes headers of SOURCES
TARGETS = ("host", "x86-64-v3", "x86-64-v4", "aarch64")
HOW = (
    "install one (Debian: apt-get install g++), or the compiler that comes as a Python package: pip install 'cnet-deploy[compiler]'; "
    "$CXX overrides what is found"
)

# Instruction set -> flags. The names are namespaces in the library, and what cnet_create_for takes.
_FLAGS = {
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    "avx512_vnni": ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx_vnni": ("-march=x86-64-v3", "-mavxvnni"),
    "avx2": ("-march=x86-64-v3",),
    "baseline": ("-march=x86-64",),
    "neon_i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
    "neon_dotprod": ("-march=armv8.2-a+dotprod",),
    "neon": ("-march=armv8-a",),
}
_ZIG_FLAGS = {
    "avx512_bf16": ("-mcpu=x86_64_v4+avx512bf16",),
    "avx512_vnni": ("-mcpu=x86_64_v4+avx512vnni",),
    "avx512": ("-mcpu=x86_64_v4",),
    "avx_vnni": ("-mcpu=x86_64_v3+avxvnni",),
    "avx2": ("-mcpu=x86_64_v3",),
    "baseline": ("-mcpu=x86_64",),
    "neon_i8mm": ("-mcpu=generic+dotprod+i8mm",),
    "neon_dotprod": ("-mcpu=generic+dotprod",),
    "neon": ("-mcpu=generic",),
}
# No -ffast-math: reassociation would break up the chains of multiply-adds, and NaN must stay NaN.
_COMMON = (
    "-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti",
    "-fvisibility=hidden", "-fno-asynchronous-unwind-tables", "-fno-threadsafe-statics", "-Wall", "-Wextra", "-Wno-psabi",
    "-Wno-ignored-attributes", "-Wno-unknown-warning-option",
)  # fmt: skip
# What the engine is compiled for, so that it can refuse on any processor.
_PLAINEST = {"x86_64": "baseline", "aarch64": "neon"}
# Of prepare.cpp every processor must make the same pixels.
_ENGINE: dict[str, tuple[str, ...]] = {"engine.cpp": (), "threads.cpp": (), "prepare.cpp": ("-ffp-contract=off",)}
_ASKED_SECONDS = 120.0  # time limit of a question to a compiler
_COMPILE_SECONDS = 1800.0  # and of compiling one file
_PLAN = ("-Werror=missing-field-initializers",)  # so that no field of plan.h is left out

# Objects of this process, where there is no folder that they could be kept in.
_MADE: dict[str, bytes] = {}
_MOST_MADE = 32


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command it is called by, its version in one line, the processor family it compiles for."""

    command: tuple[str, ...]
    version: str
    machine: str

    @property
    def is_zig(self) -> bool:
        return _is_zig(self.command)

    def flags(self, isa: str) -> tuple[str, ...]:
        return (_ZIG_FLAGS if self.is_zig else _FLAGS)[isa]


@dataclass(frozen=True)
class Processor:
    """Whose processor a library is for: the machine, and the instruction sets that it carries, the best first."""

    machine: str
    isas: tuple[str, ...]


def resolve(target: str | None, precision: str) -> Processor:
    """The processors that ``target`` names; None: all of this machine's family.

    Raises InputRefused for an unknown name, Unavailable where there is no code of that precision for this machine.
    """
    best = {"bf16": ("avx512_bf16",), "int8": ("avx512_vnni",)}.get(precision, ("avx512",))
    v3 = ("avx_vnni", "avx2") if precision == "int8" else ("avx2",)
    arm = ("neon_i8mm", "neon_dotprod", "neon") if precision == "int8" else ("neon",)
    machine = host_machine()
    if precision == "int8" and target in (None, "host") and machine not in _PLAINEST:
        raise Unavailable(f"int8 is compiled for x86_64 and aarch64, and this machine is {machine}; expected --precision fp32 or bf16 here")
    if target is None:
        if machine == "x86_64":
            return Processor(machine, (*best, *v3, "baseline"))
        return Processor(machine, arm if machine == "aarch64" else ("baseline",))
    if target == "host":
        known = resolve(None, precision)
        return Processor(machine, (next(isa for isa in known.isas if isa in host_isas()),))
    choices = {
        "x86-64-v3": Processor("x86_64", v3),
        "x86-64-v4": Processor("x86_64", (*best, "avx512") if precision == "bf16" else best),
        "aarch64": Processor("aarch64", arm),
    }
    if target not in choices:
        raise InputRefused(f"no processor is called {printable(target)!r} here; expected one of {', '.join(TARGETS)}")
    return choices[target]


def find_compiler(machine: str) -> Compiler:
    """``$CXX``, else the system's, else the one in the package ``ziglang``. Raises Unavailable where there is none."""
    if wanted := os.environ.get("CXX"):
        try:
            compiler = _asked(_words(wanted), machine)
        except _NoCompiler as error:
            raise Unavailable(
                f"$CXX is '{printable(wanted)}', which does not run as a C++ compiler: {error}; correct or unset it, or {HOW}"
            ) from None
        if compiler.machine != machine:
            raise Unavailable(
                f"$CXX ({printable(wanted)}) compiles for {printable(compiler.machine, 60)}; expected {machine}: name such a compiler"
            )
        return compiler
    native = machine == host_machine()
    for name in ("g++", "clang++") if native else (f"{machine}-linux-gnu-g++",):
        if path := subprocesses.tool(name):
            with contextlib.suppress(_NoCompiler):
                if (compiler := _asked((path,), machine)).machine == machine:
                    return compiler
    if folder := subprocesses.package_folder("ziglang"):
        with contextlib.suppress(_NoCompiler):
            return _asked((str(folder / "zig"), "c++"), machine)
    what = "C++ compiler" if native else f"C++ compiler for {machine} ({machine}-linux-gnu-g++)"
    raise Unavailable(f"no {what} was found; {HOW}")


def _words(command: str) -> tuple[str, ...]:
    """A command's words, with the path of its program made absolute. Raises _NoCompiler."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _NoCompiler(f"it can't be split into words ({error})") from None
    if not words:
        raise _NoCompiler("it names no program")
    path = str(Path(words[0]).absolute()) if "/" in words[0] else subprocesses.tool(words[0])
    if path is None:
        raise _NoCompiler(f"no program called {printable(words[0], 100)} is on $PATH")
    return (path, *words[1:])


def _is_zig(command: Sequence[str]) -> bool:
    return any("zig" in Path(word).name for word in command)


class _NoCompiler(Exception):
    """Why a command is no compiler, in words."""


def _asked(command: tuple[str, ...], machine: str) -> Compiler:
    """The compiler that a command runs, by its own answers. Raises _NoCompiler if it does not answer as one."""
    if zig := _is_zig(command):
        command = (*command, "-target", f"{machine}-linux-gnu")
    version, dumped = (_answer([*command, option]) for option in ("--version", "-dumpmachine"))
    if not zig and not re.fullmatch(r"\w+(-[\w.]+)+", dumped):
        what = f"'{printable(dumped, 100)}'" if dumped else "nothing"
        raise _NoCompiler(f"`{shlex.join(command)} -dumpmachine` printed {what}; expected a machine, as {machine}-linux-gnu")
    return Compiler(command, version.splitlines()[0] if version else "", machine if zig else dumped.partition("-")[0])


def _answer(command: list[str]) -> str:
    """What a compiler prints when it is asked about itself. Raises _NoCompiler."""
    asked = f"`{shlex.join(command)}`"
    try:
        done = subprocesses.run(command, seconds=_ASKED_SECONDS)
    except OSError as error:
        raise _NoCompiler(f"{asked} can't be run: {error.strerror or error}") from None
    except ValueError:
        raise _NoCompiler("its name has a character that no name of a program has") from None
    except subprocesses.TooLong:
        raise _NoCompiler(f"{asked} did not answer within {_ASKED_SECONDS:.0f} s") from None
    if done.code:
        lines = done.stderr.strip().splitlines()
        reason = f": {printable(lines[0], 200)}" if lines else ""
        raise _NoCompiler(f"{asked} {_ended(done.code)}{reason}")
    return done.stdout.strip()


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit status {code}"


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
            (name, _PLAINEST.get(compiler.machine, isas[-1]), (*flags, *defines)) for name, flags in _ENGINE.items()
        ]
        kernels = "int8/kernels.cpp" if precision == "int8" else "kernels.cpp"
        jobs += [(kernels, isa, (*_isa_defines(isa, precision), *defines)) for isa in isas]
        running = subprocesses.Several()
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            try:
                objects = list(pool.map(lambda job: _object(compiler, *job, extra=extra, scratch=place, running=running), jobs))
            except BaseException:  # an interrupt, or the first compiler that fails: the others need not end
                pool.shutdown(wait=False, cancel_futures=True)
                running.end()
                raise
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
        library = _made(compiler, place / "library.so")
    out.write_bytes(library)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder to compile in. Raises Unavailable where none can be made or the disk is full."""
    try:
        with temporary_folder("native") as folder:
            yield folder
    except OSError as error:
        what = "raise the limit (ulimit)" if error.errno in LIMITS else "set TMPDIR"
        raise Unavailable(f"{tempfile.gettempdir()}: nothing can be compiled there: {error.strerror or error}; {what}") from None


def _isa_defines(isa: str, precision: str) -> tuple[str, ...]:
    return (f"-DCNET_ISA={isa}", f'-DCNET_ISA_NAME="{isa}"', f"-DCNET_BF16={int(precision == 'bf16')}")


def plan_flags(precision: str, defines: Sequence[str] = ()) -> tuple[str, ...]:
    """What plan.cpp is compiled with. It has no code, and so no flags of an instruction set."""
    return (*_COMMON, *_PLAN, f"-DCNET_BF16={int(precision == 'bf16')}", *defines, "-I", str(SOURCES))


def _object(
    compiler: Compiler, name: str, isa: str, defines: Sequence[str], *, extra: Sequence[str], scratch: Path, running: subprocesses.Several
) -> bytes:
    """One object file: from the user's cache if the same compiler compiled the same sources with the same flags before."""
    flags = [*_COMMON, *compiler.flags(isa), *extra, *defines]
    key = _key(compiler, name, flags, sorted(SOURCES.rglob("*")))
    if (cached := _from_cache(key)) is not None:
        log.info("%s for %s: compiled before", name, isa)
        return cached
    log.info("compiling %s for %s with %s", name, isa, compiler.version)
    made = scratch / f"{key}.o"
    # By its relative name, so that no path of this machine gets into the object.
    _run([*compiler.command, *flags, "-c", name, "-o", str(made)], SOURCES, scratch, running)
    data = _made(compiler, made)
    _to_cache(key, data)
    return data


def build_backend(compiler: Compiler, *, extra: Sequence[str] = ()) -> bytes:
    """The backend by which Triton Inference Server runs the libraries of this compiler's machine: a shared library, from the user's cache
    if it was compiled before.

    The server has the functions that it calls (triton/server.h), so they are not defined here. The same compiler gives the same bytes.
    ``extra`` flags are for builds that check themselves. Raises Unavailable with the compiler's first complaint if it fails.
    """
    flags = [*_COMMON, *(compiler.flags(isa) if (isa := _PLAINEST.get(compiler.machine)) else ()), *extra]
    key = _key(compiler, "backend.cpp", flags, [*sorted(BACKEND.iterdir()), *sorted(SOURCES.glob("*.h"))])
    if (cached := _from_cache(key)) is not None:
        log.info("backend.cpp: compiled before")
        return cached
    log.info("compiling backend.cpp with %s", compiler.version)
    with _scratch() as place:
        made = place / "backend.so"
        _run([*compiler.command, *flags, "-c", "backend.cpp", "-o", str(place / "backend.o")], BACKEND, place)
        _run(
            [*compiler.command, *extra, "-shared", "-Wl,--as-needed,-Bsymbolic,--build-id=none,-z,relro,-z,now,-z,noexecstack,-z,undefs",
             "-s" if not extra else "-g", "-o", made.name, "backend.o", "-ldl"],
            place,
        )  # fmt: skip
        data = _made(compiler, made)
    _to_cache(key, data)
    return data


def _key(compiler: Compiler, name: str, flags: Sequence[str], sources: Iterable[Path]) -> str:
    """What a compiled file is kept under: all that it depends on."""
    content = b"".join(path.read_bytes() for path in sources if path.is_file())
    return hashlib.sha256(repr((compiler, name, list(flags), hashlib.sha256(content).hexdigest())).encode()).hexdigest()


def _made(compiler: Compiler, path: Path) -> bytes:
    """What the compiler wrote. Raises Unavailable where it wrote nothing."""
    with contextlib.suppress(FileNotFoundError):
        if data := path.read_bytes():
            return data
    raise Unavailable(f"`{shlex.join(compiler.command)}` ended without an error, but wrote no {path.suffix} file; {HOW}")


def _from_cache(key: str) -> bytes | None:
    """A cached object, if it is undamaged: its SHA-256 stands before it. That nobody else wrote it is the folder's affair."""
    kept = _MADE.get(key) if (folder := cache.folder("native")) is None else cache.read(folder, f"{key}.o")
    return kept[64:] if kept is not None and kept[:64] == digest(kept[64:]).encode() else None


def _to_cache(key: str, data: bytes) -> None:
    """Keep an object for the next exports, a megabyte or two for each version of the kernels, compiler and precision."""
    kept = digest(data).encode() + data
    if (folder := cache.folder("native")) is None:
        _MADE[key] = kept
        while len(_MADE) > _MOST_MADE:
            del _MADE[next(iter(_MADE))]
    else:
        cache.write(folder, f"{key}.o", kept)


def _run(command: Sequence[str], folder: Path, scratch: Path | None = None, running: subprocesses.Several | None = None) -> None:
    """Run a command in ``folder``. Its temporary files go to ``scratch`` or there too, since $TMPDIR may not exist."""
    environment = {"LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", "TMPDIR": str(scratch or folder)}
    if _is_zig(command[:2]):  # it keeps compiled parts of the C library, which are to be nobody else's either
        environment |= {
            "ZIG_LOCAL_CACHE_DIR": str(scratch or folder),
            "ZIG_GLOBAL_CACHE_DIR": str(cache.folder("zig") or scratch or folder),
        }
    try:
        done = subprocesses.run(command, seconds=_COMPILE_SECONDS, folder=folder, environment=environment, among=running)
    except OSError as error:
        what = "raise the limit (ulimit)" if error.errno in LIMITS else HOW
        raise Unavailable(f"{command[0]} can't be run: {error.strerror}; {what}") from None
    except subprocesses.TooLong:
        raise Unavailable(f"{' '.join(command[:3])} … took more than {_COMPILE_SECONDS / 60:.0f} minutes; {HOW}") from None
    if done.code:
        lines = done.stderr.strip().splitlines() or [_ended(done.code)]
        complaint = next((line for line in lines if "error" in line or "undefined" in line), lines[-1])
        raise Unavailable(f"{' '.join(command[:3])} … failed: {printable(complaint)}; expected GCC 11 or Clang 12 and newer: {HOW}")

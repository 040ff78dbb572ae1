"""Scan a pickle's opcodes without executing any, to see which names it has and whether it is safe to read.

The reader (pickle_reader.py) calls nothing, whatever the names. But it can still be made to crash or to hang, by a key nested a million
deep or a name of a megabyte. The scan refuses those.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import lzma
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cnet_deploy.errors import in_words, printable

MAX_BYTES = 64 << 20  # of the pickle inside a zip container; tensors are separate entries, but numpy's arrays are within
MAX_DIRECTORY = 1 << 20  # bytes of a zip archive's directory; torch's largest files of the family have 200 KB
MAX_OPCODES = 150_000  # in total; a checkpoint of CondenseNet-182 with its optimizer has some 60,000
MAX_DEPTH = 100
MAX_NAME = 200
MAX_LINE = 100_000  # parsing a number takes time quadratic in its digits
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_MARK = _LEGACY_MAGIC.to_bytes(10, "little"), str(_LEGACY_MAGIC).encode()  # pickled, as a number of protocol 2 or as text
_DIRECTORY_SIZE = 5  # its place in what zipfile reads from the end of an archive
_LEGACY_STREAMS = 5  # magic number, protocol, system, object, keys of the storages
_NAME = re.compile(r"[A-Za-z_][\w.<>]*")
# What the readers make values of: tensors, storages, dtypes, sizes, numpy's arrays and numbers, dictionaries, sets.
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|_codecs\.encode"
    r"|(__builtin__|builtins)\.(set|frozenset|bytes|bytearray|complex|object|list|dict|tuple|int|float|str|bool)"
    r"|(copyreg|copy_reg)\._reconstructor|numpy\.(ndarray|dtype)|numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|torch\.(\w*Storage|bits\w+|per_\w+|sparse_\w+|strided|serialization\._get_layout|Size|Tensor|device|float\w*|double|half|bfloat16|u?int\w*|long|bool|quint\w*|qint\w*)"
    r"|torch\.storage\.\w+|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_\w+|torch\.nn\.parameter\.Parameter"
)
# What runs code, opens files or reaches the network where pickles are loaded the usual way.
_RUNS_CODE = re.compile(
    r"(os|posix|nt|ntpath|posixpath|subprocess|sys|shutil|pty|runpy|importlib|imp|pkgutil|codeop|pdb|bdb|timeit|asyncio|multiprocessing"
    r"|threading|_thread|socket|ssl|socketserver|http|urllib|urllib2|httplib|requests|aiohttp|ftplib|smtplib|telnetlib|xmlrpc|webbrowser"
    r"|ctypes|_ctypes|cffi|pickle|_pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve|pydoc|doctest|tempfile|glob|fileinput|signal"
    r"|resource|pip|setuptools|distutils|venv|ensurepip|idlelib|lib2to3|operator|_operator|atexit|numpy\.testing|numpy\.f2py"
    r"|numpy\.distutils|torch\.hub|torch\.jit|torch\.ops|torch\.classes|torch\._dynamo|torch\._inductor|torch\.utils\.cpp_extension)(\..*)?"
    r"|(__builtin__|builtins)\.(eval|exec|execfile|compile|open|input|getattr|setattr|delattr|vars|globals|locals|__import__|breakpoint"
    r"|apply|map|filter|type|help|exit|quit)"
    r"|torch\.storage\._load_from_bytes|torch\.serialization\..*|torch\.(package|fx)\..*"
    r"|torch\.utils\.(bottleneck|collect_env|_config_module|data\.datapipes)\..*|numpy\.(load|loadtxt|genfromtxt|fromfile|memmap|save\w*)"
    r"|pandas\.(io\..*|read_\w+)|(cProfile|profile)\.run\w*|trace\.Trace.*|code\.Interactive.*|linecache\..*|zipimport\..*|codecs\.open"
    r"|(zipfile|tarfile)\.(open|\w+File)|logging\..*Handler"
    r"|(io|_io)\.(open\w*|FileIO)|pathlib\..*\..*|types\.(Function|Code|Lambda)Type|functools\.(reduce|_reduce)|torch\.(load|save)"
    r"|(.*\.)?(getoutput|getstatusoutput|system|popen\w*|spawn[lv]\w*|exec|exec[lv]\w*|_execvpe|__globals__|__subclasses__)"
)
_LOADS_BYTES = "torch.storage._load_from_bytes"  # harmless for what was looked at, which is not what lies deeper
_CHANGERS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_MARK = pickletools.markobject


@dataclass
class Findings:
    """The result of a scan. ``wanted``: functions and classes (``module.name``) beyond those of tensors and arrays, for which an Inert will
    stand. ``problem``: why the pickle must not be given to a reader, or None. ``whole``: whether the scanned part is a complete pickle."""

    wanted: list[str] = field(default_factory=list)
    problem: str | None = None
    whole: bool = True


def is_legacy(data: bytes) -> bool:
    """Whether it begins as a file of torch.save before torch 1.6 does: with the magic number, pickled."""
    return any(mark in data[:40] for mark in _LEGACY_MARK)


def open_zip(data: bytes) -> zipfile.ZipFile:
    """The archive, whose directory is limited before it is read. Raises zipfile.BadZipFile, and whatever else a damaged one may raise."""
    file = io.BytesIO(data)
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[_DIRECTORY_SIZE] > MAX_DIRECTORY:
        raise _Refused(f"its zip archive lists more than {MAX_DIRECTORY} bytes of entries")
    return zipfile.ZipFile(file)


def examine(data: bytes) -> Findings:
    """Scan the pickles of a file: a bare pickle, torch's legacy container, or torch's zip container."""
    return _examine(data, itertools.count(1))


def examine_within(data: bytes, counter: Iterator[int]) -> Findings:
    """The same for a file within a pickle. ``counter`` counts the instructions of all such files."""
    return _examine(data, counter, within=True)


def _examine(data: bytes, counter: Iterator[int], within: bool = False) -> Findings:
    findings = Findings()
    try:
        stream = _Stream(_zipped_pickle(data) if data[:2] == b"PK" else data)
        first = _Machine(findings, counter, within).run(stream)
        if is_legacy(data) and first != _LEGACY_MAGIC:
            raise _Refused("it does not begin as files of torch.save do")
        # The rest of a bare pickle is never read, but it shows what the file is.
        with contextlib.nullcontext() if first == _LEGACY_MAGIC else contextlib.suppress(Exception):
            for _ in range(_LEGACY_STREAMS - 1):
                _Machine(findings, counter, within).run(stream)
    except _Refused as error:
        findings.problem = str(error)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, OSError):
        findings.problem, findings.whole = "its zip archive is damaged or incomplete", False
    except Exception as error:  # bytes that are no pickle can raise anything
        findings.problem, findings.whole = in_words(error), False
    findings.wanted = list(dict.fromkeys(findings.wanted))
    return findings


def runs_code(name: str) -> bool:
    """Whether ``module.name`` runs code, opens files or reaches the network where pickles are loaded the usual way, as ``os.system`` does.

    >>> runs_code("posix.system"), runs_code("argparse.Namespace")
    (True, False)
    """
    return bool(_RUNS_CODE.fullmatch(name))


class _Stream(io.BytesIO):
    def readline(self, size: int | None = -1, /) -> bytes:
        place = self.tell()
        if place and self.getbuffer()[place - 1] in b"SV":  # the opcodes of text, which arrays are in protocol 0
            return super().readline(size)
        line = super().readline(MAX_LINE if size is None or size < 0 else size)
        if len(line) == MAX_LINE:
            raise _Refused(f"its pickle has a line of more than {MAX_LINE} characters")
        return line


class _Refused(ValueError):
    """The pickle is not safe to read, for the reason given."""


@dataclass(frozen=True)
class _Item:
    """An object on the stack: its nesting depth, and its value if it is a string or a number."""

    depth: int = 0
    value: object = None


class _Machine:
    """Pickle's stack machine that tracks nesting depths instead of objects."""

    def __init__(self, findings: Findings, counter: Iterator[int], within: bool) -> None:
        self.findings, self.counter, self.within = findings, counter, within
        self.stack: list[_Item | None] = []  # None is a mark
        self.memo: dict[int, _Item] = {}

    def run(self, stream: io.BytesIO) -> object:
        """Scan one pickle up to its STOP. Returns its final value if that is a string or a number."""
        for opcode, argument, _ in pickletools.genops(stream):
            if next(self.counter) > MAX_OPCODES:
                raise _Refused(f"its pickle has more than {MAX_OPCODES} instructions")
            if opcode.name == "STOP":
                top = self.stack[-1] if self.stack else None
                return top.value if top else None
            self._step(opcode, argument)
        raise _Refused("its pickle has no end")

    def _step(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        name = opcode.name
        if isinstance(argument, (str, bytes, bytearray)) and not self.within:
            self._look_within(argument)
        if name == "MARK":
            self.stack.append(None)
        elif name == "POP":
            self.stack.pop()  # an item or a mark
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else _whole(argument)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[_whole(argument)])
        else:
            self._general(opcode, argument)

    def _general(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        """Handle any other opcode by pickletools' description of what it pops and pushes."""
        before = opcode.stack_before
        marked = _MARK in before
        popped: list[_Item] = []
        if marked:
            while (item := self.stack.pop()) is not None:
                popped.append(item)
        for _ in range(before.index(_MARK) if marked else len(before)):
            popped.append(self._top())
            self.stack.pop()
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            self._note(
                str(argument).split(" ", 1)
                if argument is not None
                else ["?" if item.value is None else str(item.value) for item in reversed(popped)]
            )
        depths = [item.depth for item in popped]
        changed = depths.pop() if opcode.name in _CHANGERS else 0  # the container was popped last
        depth = max(changed, max(depths, default=-1) + 1)
        if depth > MAX_DEPTH:
            raise _Refused(f"its pickle nests more than {MAX_DEPTH} containers")
        for _ in opcode.stack_after:
            self.stack.append(_Item(depth, argument if isinstance(argument, (str, int)) else None))

    def _look_within(self, content: str | bytes | bytearray) -> None:
        """Note the names in a file of torch.save that is a value here: torch.storage._load_from_bytes loads it the usual way."""
        first = content[:40].encode("latin-1", "replace") if isinstance(content, str) else bytes(content[:40])
        if first[:2] != b"PK" and not is_legacy(first):
            return
        with contextlib.suppress(UnicodeEncodeError):
            inner = content.encode("latin-1") if isinstance(content, str) else bytes(content)
            self.findings.wanted += examine_within(inner, self.counter).wanted

    def _note(self, parts: list[str]) -> None:
        name = ".".join(parts)
        if len(name) > MAX_NAME:
            self.findings.wanted.append(printable(name, MAX_NAME))
            raise _Refused(f"its pickle asks for a name of {len(name)} characters")
        if not _HARMLESS.fullmatch(name) or (self.within and name == _LOADS_BYTES):
            self.findings.wanted.append(name if _NAME.fullmatch(name) else repr(name))

    def _top(self) -> _Item:
        item = self.stack[-1]
        if item is None:
            raise _Refused("its pickle is malformed")
        return item


def _whole(argument: object) -> int:
    assert isinstance(argument, int)
    return argument


def _zipped_pickle(data: bytes) -> bytes:
    with open_zip(data) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(entries) != 1:
            raise _Refused(f"the archive has {len(entries)} entries data.pkl, expected one")
        if entries[0].file_size > min(MAX_BYTES, len(data)):  # torch.save does not compress it
            raise _Refused(f"its pickle takes {entries[0].file_size} bytes")
        return archive.read(entries[0])

"""The two flavours of TensorRT, ``tensorrt`` 8.6 to 11 and ``tensorrt-rtx``: which one is installed and what it can do.

Differences: 8.6 needs a flag for explicit batches and has precision flags; 10 and later use the types of the graph (strongly typed); RTX
builds without a device and has no timing cache. An engine can only be read by the flavour and version that built it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cnet_deploy.errors import InputRefused, Unavailable, raise_if_interrupted
from cnet_deploy.hardware.cuda import why_no_device

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # name -> module
_HOW = {
    "tensorrt": "pip install 'cnet-deploy[gpu]' on a machine with an NVIDIA GPU",
    "tensorrt-rtx": "pip install 'cnet-deploy[rtx]'",
}
OLDEST = (8, 6)
_TURING = "SM75"  # RTX compiles no fp32 matrix product for it


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT. ``release`` is its version as numbers."""

    name: str
    module: ModuleType
    version: str
    release: tuple[int, ...]

    @property
    def rtx(self) -> bool:
        return self.name == "tensorrt-rtx"

    @property
    def strongly_typed(self) -> bool:
        """Whether a network keeps the types of its graph; then there are no precision flags."""
        return self.rtx or self.release >= (10,)

    @property
    def opsets(self) -> range:
        """The ONNX opsets that its parser reads."""
        return range(9, 18 if self.release < (10,) and not self.rtx else 25 if self.rtx or self.release >= (11,) else 21)

    @property
    def has_timing_cache(self) -> bool:
        """Whether a timing cache makes later builds faster."""
        return not self.rtx

    def why_not_build(self) -> str | None:
        """Why no engine can be built here; None if one can."""
        if self.rtx:
            return None  # builds for other GPUs, without a device
        reason = why_no_device()
        return None if reason is None else f"{self.name} builds engines on the device that they are for, but {reason}"

    def why_not_run(self) -> str | None:
        """Why no engine can be run here; None if one can. Call it before creating a Runtime, since 8.6's crashes without a driver."""
        return why_no_device()

    def require_precision(self, precision: str, opset: int) -> None:
        """Raise Unavailable if this version can't read a graph of this opset."""
        if opset not in self.opsets:
            raise Unavailable(
                f"{self.name} {self.version} reads ONNX opsets up to {self.opsets.stop - 1}, but {precision} needs {opset}; "
                "use another precision, --tensorrt-flavour tensorrt-rtx or a newer TensorRT"
            )

    def logger(self) -> Any:
        """This TensorRT's logger, which prints nothing: error messages are in its ``errors``, from which a user removes earlier ones.

        There is one for the process, which never ends. TensorRT takes the first as everybody's, and still writes to it when it frees what
        was made with it.
        """
        return _logger(self.module)

    def capabilities(self) -> list[Any]:
        """The compute capabilities to build an RTX engine for: all that this version knows, except Turing's."""
        known = self.module.ComputeCapability.__members__
        return [known[name] for name in sorted(known, key=lambda n: (len(n), n)) if name.startswith("SM") and name != _TURING]


@functools.cache
def _logger(module: ModuleType) -> Any:
    base: Any = module.ILogger
    severity = base.Severity

    class Quiet(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)

    logger = Quiet()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(logger))  # also not at the end of the process, when modules are emptied in any order
    return logger


def find(name: str | None = None) -> Flavour:
    """The flavour of this name; None takes the one that can build here, ``tensorrt`` first.

    Raises InputRefused for an unknown name, Unavailable if it is missing, too old or can't be loaded; the message says how to get it.
    """
    if name is not None:
        return _load(name)
    loaded, reasons = [], []
    for known in FLAVOURS:
        try:
            flavour = _load(known)
        except Unavailable as error:
            reasons.append(str(error))
            continue
        if (reason := flavour.why_not_build()) is None:
            return flavour
        loaded.append(flavour)
        reasons.append(reason)
    if loaded:
        return loaded[0]
    raise Unavailable("; ".join(reasons))


def _load(name: str) -> Flavour:
    if name not in FLAVOURS:
        raise InputRefused(f"unknown TensorRT flavour {name!r}; expected one of {', '.join(FLAVOURS)}")
    try:
        module = importlib.import_module(FLAVOURS[name])
        version = str(module.__version__)
        release = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
        _ = module.Builder, module.OnnxParser
    except Exception as error:  # a missing library raises ImportError, OSError or AttributeError, depending on the version
        raise_if_interrupted(error)
        raise Unavailable(f"{name} can't be loaded ({error}); {_HOW[name]}") from None
    if name == "tensorrt" and release < OLDEST:
        raise Unavailable(f"{name} {version} is too old; expected {OLDEST[0]}.{OLDEST[1]} or newer: {_HOW[name]}")
    return Flavour(name, module, version, release)

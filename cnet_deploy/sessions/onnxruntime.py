"""Run ONNX files with onnxruntime, on the CPU or on CUDA."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import re
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.artifacts.onnx_interface import Value, read_interface
from cnet_deploy.artifacts.pair import Pair
from cnet_deploy.errors import InputRefused, Unavailable, deferred_interrupts, naming, raise_if_interrupted
from cnet_deploy.files.onnx_bounds import require_bounded
from cnet_deploy.files.onnx_file import require_one_file
from cnet_deploy.files.onnx_weights import weights_precision
from cnet_deploy.hardware.cuda import Device
from cnet_deploy.sessions.base import Backend, Binding, DeviceBinding, Floats, Part, Probe, Session

BACKEND = Backend(
    suffixes=(".onnx",),
    opens=("onnx",),
    takes=("input_size",),
    tried_apart=True,
    packages=("onnxruntime-gpu", "onnxruntime"),
    exclusive=("onnxruntime", "onnxruntime-gpu"),
    remedy="pip install 'cnet-deploy[cpu]' or 'cnet-deploy[gpu]'",
    parts={
        "tensorrt": Part({"provider": "tensorrt"}, rounds_to_tf32=True),  # by NVIDIA's default
        "tf32": Part({"tf32": True}, rounds_to_tf32=True),
        "fp16": Part(export={"precision": "fp16"}),
        "bf16": Part(export={"precision": "bf16"}),
        "int8": Part(export={"precision": "int8"}),
    },
    table={"cpu": ("",), "cuda": ("",)},
    probes=(
        Probe("onnxruntime"),
        Probe("onnxruntime, int8", export={"precision": "int8"}),
        Probe("onnxruntime on cuda", "cuda"),
        Probe("onnxruntime on cuda, tensorrt", "cuda", {"provider": "tensorrt"}),
    ),
)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
_SILENT = 4
_CHECK = (
    "check that the driver is new enough for the CUDA version of onnxruntime-gpu, and that CUDA's libraries are installed "
    "(pip install torch installs them)"
)
_BOTH = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
_ALONE = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu alone"
# A path that is no folder, so that no weights are loaded from other files: the artifact's digest covers one file only.
_NO_FOLDER = ("session.model_external_initializers_file_folder_path", "/dev/null/one-file-only")
_ONNX_ALONE = ("session.load_model_format", "ONNX")  # not its own format, by whatever name


class OnnxruntimeSession(Session):
    """One ONNX file with one image input and one output of logits. ``input_size`` (height, width) fixes a size that the file leaves free.

    On CUDA it uses onnxruntime's kernels or, with ``provider`` "tensorrt", TensorRT's, but never partly the CPU. Float32 products are
    rounded to TF32 only with ``tf32``. TensorRT's provider has no such option: it rounds (``precision`` is then "tf32") unless
    NVIDIA_TF32_OVERRIDE=0 was set when the process started.
    """

    backend = "onnxruntime"

    def __init__(
        self, pair: Pair, *, device: str, threads: int | None, provider: str | None = None, tf32: bool = False,
        input_size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
            raise Unavailable(f"onnxruntime on {device!r} is not supported; expected cpu, cuda or cuda:N")
        ort = _runtime()
        kind, _, ordinal = device.partition(":")
        if provider not in ((None,) if kind == "cpu" else (None, "cuda", "tensorrt")):
            raise InputRefused(f"provider {provider!r} on {kind}; expected cuda or tensorrt, on cuda")
        if tf32 and kind == "cpu":
            raise InputRefused("TF32 on a CPU; expected device 'cuda' for that")
        wanted = _PROVIDERS[provider or kind]
        _require_provider(wanted)
        self.manifest = pair.manifest
        self.threads, self.device = threads, device
        self.weights_precision = weights_precision(pair.data)
        self.precision = self.weights_precision or "fp32"
        # TensorRT's provider always builds engines with TF32 allowed; only the driver can forbid it.
        if self.precision == "fp32" and (tf32 or (provider == "tensorrt" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0")):
            self.precision = "tf32"
        self._path, self._opened, self.bindings = pair.path, ExitStack(), weakref.WeakSet[_CudaBinding]()
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.add_session_config_entry(*_NO_FOLDER)
        options.add_session_config_entry(*_ONNX_ALONE)
        providers: list[Any] = [wanted]
        self._session: Any = None
        self.cuda: Device | None = None
        if kind == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            self.cuda = self._opened.enter_context(Device(int(ordinal or 0)))
            if hasattr(ort, "preload_dlls"):
                with contextlib.redirect_stdout(io.StringIO()):  # it prints what it can't load
                    ort.preload_dlls()
            stream = {"device_id": ordinal or "0", "user_compute_stream": str(self.cuda.stream)}
            own = {**stream, "use_tf32": str(int(tf32))}
            # TensorRT's provider runs what it can of the graph; CUDA's runs the rest.
            providers = [(wanted, stream), (_PROVIDERS["cuda"], own)] if provider == "tensorrt" else [(wanted, own)]
        try:
            self._load(pair.data, options, providers, input_size)
        except BaseException:
            self._session = None  # before its stream
            self._opened.close()
            raise

    def _load(self, data: bytes, options: Any, providers: list[Any], input_size: tuple[int, int] | None) -> None:
        path, wanted = self._path, providers[0] if isinstance(providers[0], str) else providers[0][0]
        with naming(path):
            require_one_file(data)
            require_bounded(data)
        try:
            # From the checked bytes, since the file could have been replaced meanwhile.
            self._session = _runtime().InferenceSession(data, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions have no other common base
            if "fallback" in str(error).lower():
                raise Unavailable(
                    f"{path}: onnxruntime can't run all of it with {wanted}: either that can't be loaded ({_advice()}), or it lacks "
                    "an operator in this precision (export the model in another)"
                ) from None
            if self.cuda is not None and re.search("cud|cublas|tensorrt|memory", str(error), re.IGNORECASE):
                raise _explained(path, "load", error) from None
            if self.cuda is None and (self.precision == "bf16" or "bfloat16" in str(error)):
                raise InputRefused(
                    f"{path}: it computes in bf16, for which onnxruntime lacks operators on CPUs ({_first_line(error)}); for a CPU export "
                    "with --native --precision bf16 (in Python export(model, 'native', precision='bf16'))"
                ) from None
            raise InputRefused(f"{path}: onnxruntime can't load it: {_first_line(error)}; export the model again") from None
        # It falls back to the CPU without an exception if the provider's libraries can't be loaded.
        if self._session.get_providers()[0] != wanted:
            raise Unavailable(f"onnxruntime fell back to {self._session.get_providers()[0]} from {wanted}; {_advice()}")
        with naming(path):
            try:
                self._describe(input_size)
            except UnicodeError:
                raise InputRefused("is no readable ONNX model (its text is damaged); export it again") from None

    def _describe(self, input_size: tuple[int, int] | None) -> None:
        inputs, outputs = map(_values, (self._session.get_inputs(), self._session.get_outputs()))
        entries = self._session.get_modelmeta().custom_metadata_map
        stated = self.manifest.architecture if self.manifest else None
        found = read_interface(inputs, outputs, entries, input_size=input_size, stated=stated)
        self._input, self._output, self.input_shape, self.classes = found.input, found.output, found.input_shape, found.classes
        self.architecture, self.preprocessing = found.metadata.architecture, found.metadata.preprocessing
        self._class_names = found.metadata.class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def bind(self, batch: Floats) -> Binding:
        checked = self.check(batch, exact=True)
        return _OnnxruntimeBinding(self, checked) if self.cuda is None else _CudaBinding(self, self.cuda, checked)

    def bound(self, pointers: tuple[int, ...], size: int) -> Callable[[], None]:
        """A function that enqueues one inference of ``size`` images in the first device buffer, with the logits in the second."""
        session, binding = self._session, self._session.io_binding()
        ordinal = int(self.device.partition(":")[2] or 0)
        binding.bind_input(self._input, "cuda", ordinal, np.float32, (size, *self.input_shape[1:]), pointers[0])
        binding.bind_output(self._output, "cuda", ordinal, np.float32, (size, self.classes), pointers[1])
        options = _runtime().RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def run() -> None:
            try:
                session.run_with_iobinding(binding, options)
            except Exception as error:  # no other common base
                raise _explained(self._path, "run", error) from None

        return run

    def infer(self, batch: Floats) -> Floats:
        """Run a checked batch. Raises InputRefused if the graph fails or its output has another shape or type than logits."""
        try:
            logits: Floats = self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # no other common base
            raise self.failed(self._path, len(batch), _first_line(error)) from None
        if logits.shape != (len(batch), self.classes) or logits.dtype != batch.dtype:
            what = f"its output is {logits.dtype} {list(logits.shape)}; expected float32 {[len(batch), self.classes]}"
            raise self.failed(self._path, len(batch), what)
        return logits

    def close(self) -> None:
        if not self.closed:
            super().close()
            for binding in list(self.bindings):  # they refer to onnxruntime's session, which must be freed before the stream
                binding.release()
            self._session = None
            self._opened.close()


class _OnnxruntimeBinding(Binding):
    def __init__(self, session: OnnxruntimeSession, batch: Floats) -> None:
        self._session, self._batch = session, batch
        self._logits: Floats | None = None

    def enqueue(self) -> None:
        self._logits = self._session.infer(self._batch)

    def result(self) -> Floats:
        if self._logits is None:
            raise RuntimeError("result() before enqueue()")
        return self._logits


class _CudaBinding(DeviceBinding):
    def __init__(self, session: OnnxruntimeSession, device: Device, batch: Floats) -> None:
        self._run: Callable[[], None] | None = None
        try:
            super().__init__(device, batch, session.classes)
            self._run = session.bound(self.pointers, len(batch))
        except BaseException:
            self.release()
            raise
        session.bindings.add(self)

    def start(self) -> None:
        if self._run is None:
            raise InputRefused("the session was closed; open it again to run another batch")
        self._run()

    def release(self) -> None:
        if self._run is not None:
            with contextlib.suppress(Unavailable):  # after an error of the device every call fails
                self.device.synchronize()
        self._run = None
        super().release()


def open_file(pair: Pair, *, device: str, threads: int | None, **options: Any) -> Session:
    """Open a session on an ONNX file; ``options`` are those of OnnxruntimeSession."""
    return OnnxruntimeSession(pair, device=device, threads=threads, **options)


def _values(arguments: Any) -> list[Value]:
    """Inputs or outputs; a free side has a name or None in place of its number."""
    return [
        Value(
            one.name,
            _TYPES.get(one.type, one.type.removeprefix("tensor(").removesuffix(")")),
            tuple(side if isinstance(side, int) else None for side in one.shape),
        )
        for one in arguments
    ]


def _require_provider(wanted: str) -> None:
    """Raise Unavailable if this onnxruntime was built without the provider; the message says what to install."""
    ort = _runtime()
    if wanted not in ort.get_available_providers():
        why = _BOTH if _both_installed() else "it was built without it"
        raise Unavailable(f"onnxruntime {ort.__version__} has no {wanted}: {why}; {_ALONE}")


def _advice() -> str:
    return f"{_BOTH}: {_ALONE}" if _both_installed() else _CHECK


def _both_installed() -> bool:
    return _installed("onnxruntime") and _installed("onnxruntime-gpu")


def _explained(path: Path, what: str, error: Exception) -> Unavailable:
    """onnxruntime's error on the device as Unavailable."""
    if re.search("out of memory|failed to allocate|ALLOC_FAILED", str(error), re.IGNORECASE):
        return Unavailable(f"{path}: onnxruntime ran out of the device's memory; use a smaller batch, or free the device's memory")
    if "install TensorRT libraries" in str(error):
        return Unavailable(
            f"{path}: onnxruntime's TensorRT provider can't load TensorRT's libraries; install the TensorRT that this onnxruntime "
            "was built for and put its folder into LD_LIBRARY_PATH, or leave the provider out"
        )
    return Unavailable(f"{path}: onnxruntime can't {what} it on the device: {_first_line(error)}; try device 'cpu'")


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _first_line(error: Exception) -> str:
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip()).removesuffix(".")
    return (text.splitlines() or ["no reason given"])[0][:300]


def _runtime() -> Any:
    """The module onnxruntime. Raises Unavailable if it can't be imported."""
    # Version 1.32 reports to its maker over the network, and keeps a file .ses in the folder for temporary files.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with deferred_interrupts():
            import onnxruntime
    except ImportError as error:
        raise_if_interrupted(error)
        raise Unavailable(
            f"onnxruntime can't be imported ({error}); install one of the extras cnet-deploy[cpu] and cnet-deploy[gpu], but not both"
        ) from None
    return onnxruntime

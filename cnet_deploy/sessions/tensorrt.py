"""Run TensorRT engines on a CUDA device, with TensorRT 8.6 to 11 and with RTX."""

from __future__ import annotations

import logging
import weakref
from contextlib import ExitStack
from typing import Any

from cnet_deploy.artifacts.manifest import named_as
from cnet_deploy.artifacts.onnx_metadata import INPUT, OUTPUT
from cnet_deploy.artifacts.pair import Pair
from cnet_deploy.errors import CnetDeployError, InputRefused, Unavailable, printable
from cnet_deploy.hardware import tensorrt as flavours
from cnet_deploy.hardware.cuda import Device, Graph
from cnet_deploy.hardware.engine_layers import Layers, of_engine
from cnet_deploy.sessions.base import Backend, Binding, DeviceBinding, Floats, Part, Probe, Session

log = logging.getLogger(__name__)

BACKEND = Backend(
    suffixes=(".engine",),
    opens=("engine",),
    runs_code=True,
    devices=("cuda",),
    packages=("tensorrt", "tensorrt-rtx"),
    remedy="pip install 'cnet-deploy[gpu]' or 'cnet-deploy[rtx]'",
    parts={
        "fp32": Part(),
        "tf32": Part(export={"precision": "tf32"}, rounds_to_tf32=True),
        "fp16": Part(export={"precision": "fp16"}),
        "bf16": Part(export={"precision": "bf16"}),
        "int8": Part(export={"precision": "int8"}),
        "cudagraph": Part({"cudagraph": True}),
    },
    table={"cuda": ("", "tf32", "fp16", "fp16.cudagraph")},
    per_batch=True,
    probes=(
        Probe("tensorrt", "cuda", export={"flavour": "tensorrt"}, packages=("tensorrt",)),
        Probe("tensorrt-rtx", "cuda", export={"flavour": "tensorrt-rtx"}, packages=("tensorrt-rtx",)),
    ),
)


class TensorrtSession(Session):
    """One engine on one device with one stream. ``cudagraph`` records each binding's inference once and replays it.

    Opening an engine executes code in it, according to NVIDIA. Its manifest must therefore be present and have its SHA-256, and exactly the
    bytes whose digest was checked are deserialised; host code stays forbidden. Closing frees everything that was allocated.
    """

    backend = "tensorrt"

    def __init__(self, pair: Pair, *, device: str, cudagraph: bool = False) -> None:
        kind, _, ordinal = device.partition(":")
        if kind != "cuda" or not (ordinal or "0").isdecimal():
            raise Unavailable(f"tensorrt on {device!r}: engines run on CUDA devices; expected cuda or cuda:N")
        path, manifest = pair.path, pair.require_manifest("an engine")
        if manifest.target != "tensorrt":
            raise InputRefused(f"{path}: its manifest describes no TensorRT engine; export the model again")
        self.manifest, self.device, self.precision, self.cudagraph = manifest, device, manifest.precision, cudagraph
        self.architecture, self.preprocessing = manifest.architecture, manifest.preprocessing
        try:
            flavour = self._flavour()
            with ExitStack() as opened:  # closes the device if opening the engine fails
                self.cuda = opened.enter_context(Device(int(ordinal or 0)))
                self._require_device()
                self._open(flavour, pair.data)
                self._require_answers(pair)
                self._opened = opened.pop_all()
        except CnetDeployError as error:
            raise type(error)(f"{path}: {error}") from None

    def _flavour(self) -> flavours.Flavour:
        """The TensorRT that built the engine. Raises Unavailable for another version, and without a driver."""
        assert self.manifest is not None
        name, version = (self.manifest.details.get(key) for key in ("flavour", "version"))
        if not isinstance(name, str) or not isinstance(version, str):
            raise InputRefused("its manifest does not name the TensorRT that built it; export the model again")
        flavour = flavours.find(name)
        if flavour.version != version:
            raise Unavailable(
                f"was built by {name} {printable(version, 40)}, and only that version reads it, but {flavour.version} is installed; "
                "install that version, or export the model again"
            )
        if reason := flavour.why_not_run():
            raise Unavailable(f"can't be run here: {reason}")
        return flavour

    def _require_device(self) -> None:
        assert self.manifest is not None
        here = ".".join(map(str, self.cuda.compute_capability))
        details = self.manifest.details
        known = [str(one) for one in details.get("compute_capabilities") or [details.get("compute_capability")]]
        if here not in known:
            raise Unavailable(
                f"is built for compute capability {printable(', '.join(known), 100)}, but {self.cuda.name} has {here}; "
                "export the model again on this device"
            )

    def _require_answers(self, pair: Pair) -> None:
        """Raise if the manifest's precision or answers are not the engine's own."""
        assert self.manifest is not None
        self._layers().check(self.precision)
        agrees = named_as(self.manifest, str(self._engine.name))
        if agrees is False:
            raise InputRefused("its manifest prepares images or names classes in another way than its engine; export the model again")
        self._class_names = self.manifest.class_names
        if agrees is None and pair.pinned and self.architecture is not None:
            self._class_names, self.preprocessing = (), None
            log.warning(
                "%s: how images are prepared and the class names stand in its manifest alone, which the pinned digest does not cover, and "
                "are not used; export the model again",
                pair.path,
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def _layers(self) -> Layers:
        inspector = self._engine.create_engine_inspector()
        return of_engine(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _open(self, flavour: flavours.Flavour, data: bytes) -> None:
        trt, self._log = flavour.module, flavour.logger()
        self._trt = trt
        self._log.errors.clear()
        runtime = trt.Runtime(self._log)
        runtime.engine_host_code_allowed = False
        self._engine: Any = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise InputRefused(f"{flavour.name} {flavour.version} can't read it: {self.last_errors()}; export the model again")
        engine = self._engine
        names = {engine.get_tensor_name(number): number for number in range(engine.num_io_tensors)}
        if set(names) != {INPUT, OUTPUT}:
            raise InputRefused(f"has the tensors {printable(', '.join(names), 200)}; expected {INPUT} and {OUTPUT}")
        for name in names:
            if engine.get_tensor_dtype(name) != trt.float32:
                raise InputRefused(f"its {name} is {engine.get_tensor_dtype(name)}; expected float32")
        shape, logits = tuple(engine.get_tensor_shape(INPUT)), tuple(engine.get_tensor_shape(OUTPUT))
        channels = 3 if self.architecture is None else self.architecture.image_channels
        if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < 1 or len(logits) != 2 or logits[1] < 1:
            raise InputRefused(f"reads {list(shape)} and gives {list(logits)}; expected [N, {channels}, height, width] and [N, classes]")
        least, _, most = (next(iter(sizes)) for sizes in engine.get_tensor_profile_shape(INPUT, 0))
        self.least_batch, self.largest_batch = least, most
        self.input_shape = (least if least == most else None, channels, shape[2], shape[3])
        self.classes = logits[1]
        self._runtime = runtime  # must outlive its engine
        self._bindings: weakref.WeakSet[_TensorrtBinding] = weakref.WeakSet()

    def first_opening(self) -> dict[str, Any]:
        """The engine's layers by precision."""
        return self._layers().to_dict()

    def last_errors(self) -> str:
        """TensorRT's error messages since the last call, without duplicates."""
        messages = "; ".join(dict.fromkeys(self._log.errors)) or "no reason given"
        self._log.errors.clear()
        return printable(messages, 400)

    def bind(self, batch: Floats) -> Binding:
        batch = self.check(batch, exact=True)
        binding = _TensorrtBinding(self, self._context(len(batch)), batch)
        self._bindings.add(binding)
        return binding

    def _context(self, images: int) -> Any:
        """A new execution context. 8.6 and 9 choose the profile of the first one alone."""
        context = self._engine.create_execution_context()
        if context is None:
            raise Unavailable(f"no execution context for a batch of {images}: {self.last_errors()}; use a smaller batch")
        if context.active_optimization_profile < 0:
            if not context.set_optimization_profile_async(0, self.cuda.stream):
                raise Unavailable(f"the engine runs one batch size at a time: {self.last_errors()}; export the model again")
            self.cuda.synchronize()
        return context

    def close(self) -> None:
        if not self.closed:
            super().close()
            for binding in self._bindings:
                binding.release()  # an execution context must not outlive its engine
            self._engine = self._runtime = None
            self._opened.close()


class _TensorrtBinding(DeviceBinding):
    def __init__(self, session: TensorrtSession, context: Any, batch: Floats) -> None:
        super().__init__(session.cuda, batch, session.classes)
        self._session, self._context = session, context
        self._graph: Graph | None = None
        try:
            if not context.set_input_shape(INPUT, batch.shape):
                raise InputRefused(f"the engine takes no batch of shape {list(batch.shape)}: {session.last_errors()}")
            for name, pointer in zip((INPUT, OUTPUT), self.pointers, strict=True):
                context.set_tensor_address(name, pointer)
            if session.cudagraph:
                self.upload()
                self.start()  # allocations of the first run must not be recorded
                self.wait()
                self._graph = self.device.capture(self.start)
        except BaseException:
            self.release()
            raise

    def start(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        elif not self._context.execute_async_v3(self.device.stream):
            raise Unavailable(f"TensorRT could not run the engine: {self._session.last_errors()}")

    def release(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._context = None
        super().release()


def open_file(pair: Pair, *, device: str, threads: int | None, cudagraph: bool = False) -> Session:  # noqa: ARG001
    """Open a session on an engine of `export --tensorrt`; ``threads`` is ignored."""
    return TensorrtSession(pair, device=device, cudagraph=cudagraph)

"""Run ONNX files with OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cnet_deploy.artifacts.onnx_interface import Value, read_interface
from cnet_deploy.artifacts.pair import Pair
from cnet_deploy.errors import InputRefused, Unavailable, deferred_interrupts, naming, raise_if_interrupted
from cnet_deploy.files.onnx_bounds import require_bounded
from cnet_deploy.files.onnx_file import parse_onnx
from cnet_deploy.files.onnx_weights import weights_precision
from cnet_deploy.sessions.base import Backend, Binding, Floats, Part, Probe, Session

BACKEND = Backend(
    suffixes=(".onnx",),
    opens=("onnx",),
    takes=("input_size",),
    tried_apart=True,
    devices=("cpu",),
    packages=("openvino",),
    remedy="pip install 'cnet-deploy[openvino]'",
    parts={"bf16": Part({"precision": "bf16"}), "int8": Part(export={"precision": "int8"})},
    probes=(Probe("openvino"), Probe("openvino, int8", export={"precision": "int8"})),
)

_TYPES = {"f16": "float16", "f32": "float32", "f64": "float64", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64"}
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenvinoSession(Session):
    """One ONNX file with one image input and one output of logits. It computes in ``precision``, whatever the precision of the file; of a
    file in int8 this is the precision of what is not quantised.

    ``input_size`` (height, width) fixes a size that the file leaves free.
    """

    backend = "openvino"

    def __init__(
        self, pair: Pair, *, device: str, threads: int | None, precision: str = "fp32", input_size: tuple[int, int] | None = None
    ) -> None:  # fmt: skip
        openvino = _runtime()
        if device != "cpu":
            raise Unavailable(f"openvino on {device!r} is not supported; expected device 'cpu'")
        self.manifest, self._path = pair.manifest, pair.path
        if precision not in _HINTS:
            raise InputRefused(f"precision {precision!r}; expected one of {', '.join(_HINTS)}")
        self.threads, self.weights_precision = threads, weights_precision(pair.data)
        self.precision = "int8" if self.weights_precision == "int8" else precision  # what it quantises is in the graph
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        with naming(pair.path):
            proto = parse_onnx(pair.data)
            require_bounded(pair.data)
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        declared = {value.name: _declared(value) for value in proto.graph.output}
        try:
            core = openvino.Core()
            model = core.read_model(pair.data)
            with naming(pair.path):
                inputs, outputs = _values(model.inputs, {}), _values(model.outputs, declared)
                stated = self.manifest.architecture if self.manifest else None
                found = read_interface(inputs, outputs, entries, input_size=input_size, stated=stated)
            if None in (inputs[0].shape or ())[1:]:
                model.reshape(openvino.PartialShape([-1 if side is None else side for side in found.input_shape]))
            self._model: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise InputRefused(f"{pair.path}: openvino can't load it: {_first_line(error)}; export the model again") from None
        self.input_shape, self.classes = found.input_shape, found.classes
        self.architecture, self.preprocessing = found.metadata.architecture, found.metadata.preprocessing
        self._class_names = found.metadata.class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def close(self) -> None:
        super().close()
        self._model = None

    def bind(self, batch: Floats) -> Binding:
        checked = self.check(batch, exact=True)
        return _OpenvinoBinding(_runtime(), self, self._model.create_infer_request(), checked)

    def infer(self, request: Any, images: int) -> None:
        """Run a request of so many images. Raises InputRefused if the graph fails or its output has another shape than logits."""
        try:
            request.infer()
        except RuntimeError as error:
            raise self.failed(self._path, images, _first_line(error)) from None
        shape = list(request.get_output_tensor().shape)
        if shape != [images, self.classes]:
            raise self.failed(self._path, images, f"its output is {shape}; expected {[images, self.classes]}")


class _OpenvinoBinding(Binding):
    def __init__(self, openvino: Any, session: OpenvinoSession, request: Any, batch: Floats) -> None:
        self._session, self._request = session, request
        self._request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        self._batch = batch

    def enqueue(self) -> None:
        self._session.infer(self._request, len(self._batch))

    def result(self) -> Floats:
        return np.array(self._request.get_output_tensor().data, np.float32)


def open_file(pair: Pair, *, device: str, threads: int | None, **options: Any) -> Session:
    """Open a session on an ONNX file; ``options`` are those of OpenvinoSession."""
    return OpenvinoSession(pair, device=device, threads=threads, **options)


def _values(ports: Any, declared: Mapping[str, tuple[int | None, ...]]) -> list[Value]:
    """Inputs or outputs. OpenVINO infers their shapes; where it can't, those that the file declares count."""
    found = []
    for port in ports:
        name, shape, dtype = port.any_name if port.names else "", port.partial_shape, port.element_type.to_string()
        sides = None if shape.rank.is_dynamic else tuple(side.get_length() if side.is_static else None for side in shape)
        stated = declared.get(name, ())
        if sides is None:
            sides = stated or None
        elif len(stated) == len(sides):
            sides = tuple(side if side is not None else other for side, other in zip(sides, stated, strict=True))
        found.append(Value(name, _TYPES.get(dtype, dtype), sides))
    return found


def _declared(value: Any) -> tuple[int | None, ...]:
    """The shape of an output as the file declares it; a side without a number is free."""
    return tuple(int(side.dim_value) or None for side in value.type.tensor_type.shape.dim)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[-1][:300]


def _runtime() -> Any:
    """The module openvino. Raises Unavailable if it can't be imported."""
    try:
        with deferred_interrupts():
            import openvino
    except ImportError as error:
        raise_if_interrupted(error)
        raise Unavailable(f"openvino can't be imported ({error}); install the extra: cnet-deploy[openvino]") from None
    return openvino

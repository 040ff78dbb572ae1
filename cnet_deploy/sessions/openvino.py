"""Run ONNX files with OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from cnet_deploy.artifacts.onnx_metadata import check_metadata, read_metadata
from cnet_deploy.artifacts.pair import Pair
from cnet_deploy.errors import InputRefused, Unavailable, deferred_interrupts, naming, raise_if_interrupted
from cnet_deploy.files.onnx_file import parse_onnx
from cnet_deploy.images.preprocessing import CHANNELS
from cnet_deploy.sessions.base import Backend, Binding, Floats, Part, Session

BACKEND = Backend(
    suffixes=(".onnx",),
    opens=("onnx",),
    devices=("cpu",),
    packages=("openvino",),
    remedy="pip install 'cnet-deploy[openvino]'",
    parts={"bf16": Part({"precision": "bf16"})},
)

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenvinoSession(Session):
    """One ONNX file with one image input and one output of logits. It computes in ``precision``, whatever the precision of the file."""

    backend = "openvino"

    def __init__(self, pair: Pair, *, device: str, threads: int | None, precision: str = "fp32") -> None:
        openvino = _runtime()
        if device != "cpu":
            raise Unavailable(f"openvino on {device!r} is not supported; expected device 'cpu'")
        self.manifest = pair.manifest
        if precision not in _HINTS:
            raise InputRefused(f"precision {precision!r}; expected one of {', '.join(_HINTS)}")
        self.threads, self.precision = threads, precision
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        with naming(pair.path):
            stated = read_metadata({entry.key: entry.value for entry in parse_onnx(pair.data).metadata_props})
        try:
            core = openvino.Core()
            model = core.read_model(pair.data)
            if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.input().partial_shape) != 4:
                raise InputRefused("expected one image input and one output of logits")
            batch, channels, height, width = model.input().partial_shape
            if channels.get_length() not in CHANNELS:
                raise InputRefused(f"its input has {channels.get_length()} channels; expected images of 1, 3 or 4")
            sides = (channels.get_length(), height.get_length(), width.get_length())
            self.input_shape = (batch.get_length() if batch.is_static else None, *sides)
            self.classes = model.output().partial_shape[1].get_length()
            own = self.manifest.architecture if self.manifest else None
            check_metadata(stated, self.input_shape[2:], self.classes, own, sides[0])
            self._model: Any = core.compile_model(model, "CPU", settings)
        except (RuntimeError, InputRefused) as error:
            raise InputRefused(f"{pair.path}: openvino can't load it: {str(error).splitlines()[0]}; export the model again") from None
        self.architecture, self.preprocessing, self._class_names = stated.architecture, stated.preprocessing, stated.class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def close(self) -> None:
        super().close()
        self._model = None

    def bind(self, batch: Floats) -> Binding:
        checked = self.check(batch, exact=True)
        return _OpenvinoBinding(_runtime(), self._model.create_infer_request(), checked)


class _OpenvinoBinding(Binding):
    def __init__(self, openvino: Any, request: Any, batch: Floats) -> None:
        self._request = request
        self._request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        self._batch = batch

    def enqueue(self) -> None:
        self._request.infer()

    def result(self) -> Floats:
        return np.array(self._request.get_output_tensor().data, np.float32)


def open_file(pair: Pair, *, device: str, threads: int | None, precision: str = "fp32") -> Session:
    """Open a session on an ONNX file."""
    return OpenvinoSession(pair, device=device, threads=threads, precision=precision)


def _runtime() -> Any:
    """The module openvino. Raises Unavailable if it can't be imported."""
    try:
        with deferred_interrupts():
            import openvino
    except ImportError as error:
        raise_if_interrupted(error)
        raise Unavailable(f"openvino can't be imported ({error}); install the extra: cnet-deploy[openvino]") from None
    return openvino

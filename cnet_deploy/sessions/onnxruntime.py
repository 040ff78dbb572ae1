"""ONNX files in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cnet_deploy import manifest
from cnet_deploy.architecture import Architecture
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.manifest import METADATA_PREFIX
from cnet_deploy.preprocessing import Preprocessing
from cnet_deploy.sessions.base import Binding, Floats, Session

try:
    import onnxruntime as ort
except ImportError as error:
    raise Unavailable(
        f"onnxruntime can't be imported ({error}); install the extra for this machine: cnet-deploy[cpu], or cnet-deploy[gpu], never both"
    ) from None

_PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OnnxruntimeSession(Session):
    """One ONNX file with one image input and one output of logits."""

    backend = "onnxruntime"

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        if device not in _PROVIDERS:
            raise Unavailable(f"onnxruntime on {device!r} is not supported yet; expected one of {', '.join(_PROVIDERS)}")
        self.manifest = manifest.read(path)
        self.threads = threads
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[_PROVIDERS[device]])
        except Exception as error:  # onnxruntime's own exceptions share no base but this
            raise InputRefused(f"{path}: onnxruntime can't load it: {(str(error).splitlines() or ['no reason given'])[0][:300]}") from None
        if self._session.get_providers()[0] != _PROVIDERS[device]:
            raise Unavailable(
                f"onnxruntime runs on {self._session.get_providers()[0]}, not on {device!r}; install the matching onnxruntime build"
            )
        self._describe(path)

    def _describe(self, path: Path) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputRefused(f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs; expected an image in and logits out")
        self._input, self._output = inputs[0].name, outputs[0].name
        shape, logits = inputs[0].shape, outputs[0].shape
        if inputs[0].type != "tensor(float)" or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]) or shape[1] != 3:
            raise InputRefused(f"{path}: input is {inputs[0].type} {shape}; expected tensor(float) [N, 3, height, width] of fixed size")
        if len(logits) != 2 or not isinstance(logits[1], int):
            raise InputRefused(f"{path}: output has shape {logits}; expected [N, classes]")
        self.input_shape = (shape[0] if isinstance(shape[0], int) else None, shape[1], shape[2], shape[3])
        self.classes = logits[1]
        found: dict[str, Any] = self._session.get_modelmeta().custom_metadata_map
        try:
            if text := found.get(f"{METADATA_PREFIX}architecture"):
                self.architecture = Architecture.from_dict(json.loads(text))
            if text := found.get(f"{METADATA_PREFIX}preprocessing"):
                self.preprocessing = Preprocessing.from_dict(json.loads(text))
        except (ValueError, AttributeError, TypeError) as error:
            raise InputRefused(f"{path}: metadata can't be read: {error}; export the model again") from None

    def bind(self, batch: Floats) -> Binding:
        return _OnnxruntimeBinding(self._session, self._input, self._output, self.check(batch))

    def close(self) -> None:
        del self._session


class _OnnxruntimeBinding(Binding):
    def __init__(self, session: Any, name: str, output: str, batch: Floats) -> None:
        self._session, self._feed, self._outputs = session, {name: batch}, [output]
        self._logits: Floats | None = None

    def enqueue(self) -> None:
        self._logits = self._session.run(self._outputs, self._feed)[0]

    def result(self) -> Floats:
        if self._logits is None:
            raise RuntimeError("result() before enqueue()")
        return self._logits


def open_file(path: Path, *, device: str, threads: int | None) -> Session:
    """A session over an ONNX file."""
    return OnnxruntimeSession(path, device=device, threads=threads)

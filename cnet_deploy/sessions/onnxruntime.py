"""ONNX files in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cnet_deploy import manifest
from cnet_deploy.architecture import Architecture
from cnet_deploy.errors import InputRefused, Unavailable, raise_if_interrupted
from cnet_deploy.files import read_bytes
from cnet_deploy.manifest import METADATA_PREFIX
from cnet_deploy.preprocessing import Preprocessing
from cnet_deploy.sessions.base import Binding, Floats, Session

try:
    import onnxruntime as ort
except ImportError as error:
    raise_if_interrupted(error)
    raise Unavailable(
        f"onnxruntime can't be imported ({error}); install the extra for this machine: cnet-deploy[cpu], or cnet-deploy[gpu], never both"
    ) from None

_PROVIDERS = {"cpu": "CPUExecutionProvider"}
_SILENT = 4
# No folder that weights could lie in: an artifact is one file, and its digest covers no other.
_NO_FOLDER = ("session.model_external_initializers_file_folder_path", "/dev/null/one-file-only")


class OnnxruntimeSession(Session):
    """One ONNX file with one image input and one output of logits."""

    backend = "onnxruntime"

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        if device not in _PROVIDERS:
            raise Unavailable(f"onnxruntime on {device!r} is not supported yet; expected one of {', '.join(_PROVIDERS)}")
        data = read_bytes(path)
        self.manifest = manifest.read(path, data)
        self.threads = threads
        self._path = path
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.add_session_config_entry(*_NO_FOLDER)
        try:
            # The bytes whose digest was checked, so that the file can't be swapped in between.
            self._session: Any = ort.InferenceSession(data, options, providers=[_PROVIDERS[device]])
        except Exception as error:  # onnxruntime's own exceptions share no base but this
            if "External data" in str(error):
                raise InputRefused(f"{path}: keeps weights in other files; expected one file, as `export` writes it") from None
            raise InputRefused(f"{path}: onnxruntime can't load it: {_first_line(error)}") from None
        if self._session.get_providers()[0] != _PROVIDERS[device]:
            raise Unavailable(f"onnxruntime runs on {self._session.get_providers()[0]}, not on {device!r}; install the matching build")
        try:
            self._describe()
        except (ValueError, AttributeError, TypeError, RecursionError, InputRefused) as error:
            raise InputRefused(f"{path}: {error}; expected an artifact of `export`, or an image classifier in one ONNX file") from None

    def _describe(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputRefused(f"has {len(inputs)} inputs and {len(outputs)} outputs; expected an image in and logits out")
        self._input, self._output = inputs[0].name, outputs[0].name
        shape, logits = inputs[0].shape, outputs[0].shape
        fixed = len(shape) == 4 and all(isinstance(side, int) and side > 0 for side in shape[1:])
        if inputs[0].type != "tensor(float)" or not fixed or shape[1] != 3:
            raise InputRefused(f"input is {inputs[0].type} {shape}; expected tensor(float) [N, 3, height, width] of fixed size")
        if len(logits) != 2 or not isinstance(logits[1], int):
            raise InputRefused(f"output has shape {logits}; expected [N, classes]")
        self.input_shape = (shape[0] if isinstance(shape[0], int) else None, shape[1], shape[2], shape[3])
        self.classes = logits[1]
        found: dict[str, Any] = self._session.get_modelmeta().custom_metadata_map
        if text := found.get(f"{METADATA_PREFIX}preprocessing"):
            self.preprocessing = Preprocessing.from_dict(json.loads(text))
        if text := found.get(f"{METADATA_PREFIX}architecture"):
            self.architecture = arch = Architecture.from_dict(json.loads(text))
            if (arch.classes, arch.input_size) != (self.classes, self.input_shape[2:]):
                raise InputRefused(
                    f"its metadata speaks of {arch.classes} classes and {arch.input_size} pixels, its graph has {shape} and {logits}"
                )
        if self.manifest is not None and self.manifest.architecture != self.architecture:
            raise InputRefused("its manifest speaks of another architecture than its metadata")

    def bind(self, batch: Floats) -> Binding:
        return _OnnxruntimeBinding(self, self.check(batch, exact=True))

    def infer(self, batch: Floats) -> Floats:
        """One inference of a batch that was checked. Raises InputRefused for a graph that fails or gives something else than logits."""
        try:
            logits: Floats = self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # as above
            raise InputRefused(f"{self._path}: onnxruntime can't run it: {_first_line(error)}") from None
        if logits.shape != (len(batch), self.classes) or logits.dtype != batch.dtype:
            raise InputRefused(f"{self._path}: gave {logits.dtype} {list(logits.shape)}; expected float32 {[len(batch), self.classes]}")
        return logits

    def close(self) -> None:
        super().close()
        self._session = None


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


def open_file(path: Path, *, device: str, threads: int | None) -> Session:
    """A session over an ONNX file."""
    return OnnxruntimeSession(path, device=device, threads=threads)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:300]

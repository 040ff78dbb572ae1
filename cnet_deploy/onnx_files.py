"""ONNX files that keep tensors elsewhere: found before a runtime follows them, and without onnx where there is nothing to find."""

from __future__ import annotations

from typing import Any

from cnet_deploy.errors import InputRefused


def require_one_file(data: bytes) -> None:
    """Raise InputRefused for an ONNX file that keeps a tensor in another file, wherever in it that tensor stands.

    Runtimes follow a place into any folder, and older ones into their own memory; an artifact's digest says nothing of what is there.
    """
    if b"location" not in data:  # the key of every such place, so that all other files are read once only, by the runtime
        return
    import onnx

    try:
        elsewhere = _elsewhere(onnx.load_model_from_string(data), onnx.TensorProto)
    except Exception as error:  # what protobuf raises on damaged files has no common base
        raise InputRefused(f"is no ONNX model that can be read ({str(error) or type(error).__name__})") from None
    if elsewhere:
        raise InputRefused("keeps weights in other files; expected one file, as `export` writes it")


def _elsewhere(message: Any, tensor: Any) -> bool:
    if isinstance(message, tensor):
        return message.data_location == tensor.EXTERNAL or len(message.external_data) > 0
    parts = [value for field, value in message.ListFields() if field.message_type is not None]
    return any(_elsewhere(one, tensor) for part in parts for one in ([part] if hasattr(part, "ListFields") else part))

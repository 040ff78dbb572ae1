"""ONNX files as bytes: parsed or refused, and never one that keeps tensors in other files."""

from __future__ import annotations

from typing import Any

from cnet_deploy.errors import InputRefused


def parse_onnx(data: bytes) -> Any:
    """The onnx.ModelProto of a file's bytes. Raises InputRefused for bytes that hold no graph, and as ``require_one_file`` does."""
    model = _parse(data)
    if not model.graph.node:
        raise InputRefused("is no ONNX model that can be read (it has no nodes); export it again")
    return model


def require_one_file(data: bytes) -> None:
    """Raise InputRefused for an ONNX file that keeps a tensor in another file, wherever in it that tensor stands.

    Runtimes follow such a place into any folder, and older ones into their own memory; an artifact's digest does not cover what is there.
    """
    if b"location" in data:  # the key of every such place: other files need no parsing here
        _parse(data)


def _parse(data: bytes) -> Any:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
        elsewhere = b"location" in data and _is_elsewhere(model, onnx.TensorProto)
    except Exception as error:  # what protobuf raises on damaged files has no common base
        raise InputRefused(f"is no ONNX model that can be read ({str(error) or type(error).__name__}); export it again") from None
    if elsewhere:
        raise InputRefused("keeps weights in other files; expected one file, as `export` writes it")
    return model


def _is_elsewhere(message: Any, tensor: Any) -> bool:
    if isinstance(message, tensor):
        return message.data_location == tensor.EXTERNAL or len(message.external_data) > 0
    parts = [value for field, value in message.ListFields() if field.message_type is not None]
    return any(_is_elsewhere(one, tensor) for part in parts for one in ([part] if hasattr(part, "ListFields") else part))

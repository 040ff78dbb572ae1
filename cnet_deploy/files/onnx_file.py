"""Parse ONNX files from bytes. Files that keep tensors in other files are refused."""

from __future__ import annotations

from typing import Any

from cnet_deploy.errors import InputRefused, in_words


def parse_onnx(data: bytes) -> Any:
    """The onnx.ModelProto in a file's bytes. Raises InputRefused for bytes without a graph, and as ``require_one_file`` does."""
    model = _parse(data)
    if not model.graph.node:
        raise InputRefused("is no readable ONNX model (it has no nodes); export it again")
    return model


def require_one_file(data: bytes) -> None:
    """Raise InputRefused for an ONNX file that keeps any tensor in another file.

    Runtimes follow such a reference into any folder, and older ones into their own memory. An artifact's digest does not cover that data.
    """
    if b"location" in data:  # the key of every such reference; files without it need no parsing
        _parse(data)


def _parse(data: bytes) -> Any:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
        elsewhere = b"location" in data and _is_elsewhere(model, onnx.TensorProto)
    except Exception as error:  # protobuf can raise anything on damaged files
        raise InputRefused(f"is no readable ONNX model ({in_words(error)}); export it again") from None
    if elsewhere:
        raise InputRefused(
            "keeps weights in other files; expected one file, as `export` writes it: join them in Python, in the folder where they are: "
            "import onnx; onnx.save_model(onnx.load('model.onnx'), 'joined.onnx', save_as_external_data=False)"
        )
    return model


def _is_elsewhere(message: Any, tensor: Any) -> bool:
    if isinstance(message, tensor):
        return message.data_location == tensor.EXTERNAL or len(message.external_data) > 0
    parts = [value for field, value in message.ListFields() if field.message_type is not None]
    return any(_is_elsewhere(one, tensor) for part in parts for one in ([part] if hasattr(part, "ListFields") else part))

"""Parse ONNX files from bytes. Files that keep tensors in other files, or compiled code, are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cnet_deploy.errors import InputRefused, in_words

MOST_NODES = 100_000  # the paper's largest networks have some 2,000


def parse_onnx(data: bytes) -> Any:
    """The onnx.ModelProto in a file's bytes. Raises InputRefused for bytes without a graph, and as ``require_one_file`` does."""
    model = _parse(data)
    if not model.graph.node:
        raise InputRefused("is no readable ONNX model (it has no nodes); export it again")
    return model


def require_one_file(data: bytes) -> None:
    """Raise InputRefused for an ONNX file that keeps any tensor in another file, or code that a runtime compiled.

    Runtimes follow such a reference into any folder, and older ones into their own memory. An artifact's digest does not cover that data.
    Compiled code is an engine, which is opened with its manifest alone.
    """
    if _is_suspect(data):
        _parse(data)


def _is_suspect(data: bytes) -> bool:
    """Whether a file may have what is refused: the key of every reference to another file, or the operator that holds compiled code."""
    return b"location" in data or b"EPContext" in data


def _parse(data: bytes) -> Any:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
        nodes = len(model.graph.node)
        elsewhere = _is_suspect(data) and _any(model, onnx.TensorProto, _is_elsewhere)
        compiled = _is_suspect(data) and _any(model, onnx.NodeProto, lambda node: node.op_type == "EPContext")
        damaged = nodes <= MOST_NODES and not all(
            isinstance(text, str) for text in _texts(model)
        )  # protobuf gives bytes for what is no UTF-8
    except Exception as error:  # protobuf can raise anything on damaged files
        raise InputRefused(f"is no readable ONNX model ({in_words(error)}); export it again") from None
    if nodes > MOST_NODES:
        raise InputRefused(f"has {nodes:,} nodes; expected a network of at most {MOST_NODES:,}: export it again")
    if damaged:
        raise InputRefused("is no readable ONNX model (its text is damaged); export it again")
    if elsewhere:
        raise InputRefused(
            "keeps weights in other files; expected one file, as `export` writes it: join them in Python, in the folder where they are: "
            "import onnx; onnx.save_model(onnx.load('model.onnx'), 'joined.onnx', save_as_external_data=False)"
        )
    if compiled:
        raise InputRefused(
            "has a node EPContext, which holds code that was compiled for some device and would be run unchecked; expected the ONNX file "
            "that it was made from"
        )
    return model


def _texts(model: Any) -> Iterator[Any]:
    """The texts that are read here or shown."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (model.producer_name, model.producer_version, model.graph.name)
    yield from (value.name for value in (*model.graph.input, *model.graph.output))
    yield from (opset.domain for opset in model.opset_import)
    for node in model.graph.node:
        yield from (node.op_type, node.domain, *node.input, *node.output)


def _is_elsewhere(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL or len(tensor.external_data))


def _any(message: Any, kind: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether something holds for a message of this kind in ``message``, at whichever depth."""
    if isinstance(message, kind) and holds(message):
        return True
    parts = [value for field, value in message.ListFields() if field.message_type is not None]
    return any(_any(one, kind, holds) for part in parts for one in ([part] if hasattr(part, "ListFields") else part))

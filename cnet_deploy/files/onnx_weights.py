"""The precision of an ONNX file's weights, from its bytes alone.

Without the onnx package, whose import takes longer than opening a network. The field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from cnet_deploy.files.wire import NoMessage, Value, fields

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4  # of a NodeProto
_TYPE, _NAME = 2, 8  # of a TensorProto
_MULTIPLY = (b"Conv", b"Gemm", b"MatMul")
_DEQUANTIZE = b"DequantizeLinear"
_PRECISIONS = {1: "fp32", 11: "fp32", 10: "fp16", 16: "bf16"}  # of TensorProto.DataType; doubles are no less exact than floats
_BYTES = (2, 3)  # unsigned and signed
_EXACT_FIRST = ("fp32", "fp16", "bf16")
_MOST_FIELDS = 1 << 18  # the paper's largest networks have some 20,000


def weights_precision(data: bytes) -> str | None:
    """The most exact precision among the weights that convolutions and matrix products read: "fp32", "fp16" or "bf16".

    "int8" where any of them are bytes behind a DequantizeLinear: a network in int8 has layers that are more exact, the stem at least, but
    its logits are not. None where no such weight is found: in a file that is damaged, that has more fields than any network, or that
    computes its weights.
    """
    left = iter(range(_MOST_FIELDS))
    types: dict[bytes, int] = {}
    read: set[bytes] = set()
    dequantized: dict[bytes, bytes] = {}  # what it gives -> what it reads
    try:
        for number, graph in _at_most(memoryview(data), left):
            if number != _GRAPH or isinstance(graph, int):
                continue
            for kind, part in _at_most(graph, left):
                if kind not in (_NODE, _INITIALIZER) or isinstance(part, int):
                    continue
                entries = list(_at_most(part, left))
                if kind == _INITIALIZER:
                    types[_text(entries, _NAME)] = next((value for key, value in entries if key == _TYPE and isinstance(value, int)), 0)
                elif (operator := _text(entries, _OPERATOR)) == _DEQUANTIZE:
                    dequantized[_text(entries, _OUTPUT)] = _text(entries, _INPUT)
                elif operator in _MULTIPLY:
                    inputs = [bytes(value) for key, value in entries if key == _INPUT and not isinstance(value, int)]
                    read.update(inputs[1:2])
    except NoMessage:
        return None
    if any(types.get(dequantized[name]) in _BYTES for name in read if name in dequantized):
        return "int8"
    found = {_PRECISIONS.get(types[name]) for name in read if name in types}
    return next((name for name in _EXACT_FIRST if name in found), None)


def _text(entries: list[tuple[int, Value]], wanted: int) -> bytes:
    return next((bytes(value) for key, value in entries if key == wanted and not isinstance(value, int)), b"")


def _at_most(message: memoryview, left: Iterator[int]) -> Iterator[tuple[int, Value]]:
    """The fields of a message; ``left`` counts those of all messages. Raises NoMessage for anything else."""
    for field in fields(message):
        if next(left, None) is None:
            raise NoMessage
        yield field

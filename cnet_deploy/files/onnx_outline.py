"""What an ONNX file would do, read from its bytes without any library: its operators, what in it runs code over and over, its work.

The fields are those of onnx.proto. Weights are skipped, so it takes milliseconds. Nothing is believed that is not understood: a graph is
plain only if every field of it is known here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cnet_deploy.files.wire import NoMessage, Value, fields, varint

MOST_WORK = 1 << 37  # multiply-adds of one image: several times the largest network of the paper's table, seconds on one core
MOST_VALUES = 1 << 29  # elements of all tensors between the layers
MOST_NODES = 50_000
_MOST_SIDE = 1 << 20
_DEPTH = 40  # graphs in graphs
_NO_FILE = "its bytes are no ONNX file's"
SUBGRAPHS = ("If", "Loop", "Scan", "SequenceMap")

Shape = tuple[int, ...]


class NotPlain(Exception):
    """Why it is not known what a graph would do, in words."""


@dataclass
class Outline:
    """What is in a file: how many nodes of each operator, in all graphs and functions ("domain::operator" where it is not ONNX's own), how
    many functions it defines itself, and the domains of its operators but ONNX's."""

    operators: dict[str, int] = field(default_factory=dict)
    functions: int = 0
    domains: set[str] = field(default_factory=set)
    nodes: int = 0

    def remarks(self) -> list[str]:
        """What makes it hard to foresee what it does, in words; empty for a plain network."""
        found = [f"{name} ({self.operators[name]})" for name in SUBGRAPHS if name in self.operators]
        if self.functions:
            found.append(f"functions of its own ({self.functions})")
        if self.domains:
            found.append(f"operators of {', '.join(sorted(self.domains)[:5])}")
        return found


class _Node(NamedTuple):
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, Sequence[int]]  # attributes that are integers


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except NoMessage:
        raise NotPlain(_NO_FILE) from None


@_reading()
def outline(data: bytes) -> Outline:
    """The outline of a file. Raises NotPlain for bytes that are no ONNX file, and for more nodes than any network has."""
    found = Outline()
    for number, value in fields(memoryview(data)):
        if number == 7:
            _outline_graph(_message(value), found, 0)
        elif number == 25:
            found.functions += 1
            for inner, node in fields(_message(value)):
                if inner == 7:
                    _outline_node(_message(node), found, 0)
    return found


def _outline_graph(graph: memoryview, found: Outline, depth: int) -> None:
    if depth > _DEPTH:
        raise NotPlain("its graphs are nested too deep")
    for number, value in fields(graph):
        if number == 1:
            _outline_node(_message(value), found, depth)


def _outline_node(node: memoryview, found: Outline, depth: int) -> None:
    found.nodes += 1
    if found.nodes > MOST_NODES:
        raise NotPlain("it has very many nodes")
    operator = domain = ""
    for number, value in fields(node):
        if number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for inner, part in fields(_message(value)):
                if inner in (6, 11):
                    _outline_graph(_message(part), found, depth + 1)
    if domain not in ("", "ai.onnx"):
        found.domains.add(domain)
        operator = f"{domain}::{operator}"
    found.operators[operator] = found.operators.get(operator, 0) + 1


@_reading()
def require_plain(data: bytes) -> None:
    """Raise NotPlain unless the file holds a feed-forward network of known layers whose work and memory are bounded, as `export` writes."""
    graphs = []
    for number, value in fields(memoryview(data)):
        if number == 7:
            graphs.append(_message(value))
        elif number == 8:
            _require_own_domain(_message(value))
        elif number == 14:
            for _, text in fields(_message(value)):
                _text(text)
        elif number not in (1, 2, 3, 4, 5, 6):
            raise NotPlain("it has functions or other parts beside its graph")
    if len(graphs) != 1:
        raise NotPlain(f"it has {len(graphs)} graphs")
    weights: dict[str, Shape] = {}
    shapes: dict[str, Shape] = {}
    nodes: list[_Node] = []
    for number, value in fields(graphs[0]):
        if number == 1:
            nodes.append(_node(_message(value)))
            if len(nodes) > MOST_NODES:
                raise NotPlain("it has very many nodes")
        elif number == 5:
            name, shape = _tensor(_message(value), len(data))
            if name in weights:
                raise NotPlain("two weights have one name")
            weights[name] = shape
        elif number == 11:
            name, shape = _input(_message(value))
            shapes[name] = shape
        elif number not in (2, 10, 12, 13, 16):
            raise NotPlain("its graph has parts that are not known here")
    shapes = {name: shape for name, shape in shapes.items() if name not in weights}
    work = values = 0
    for node in nodes:
        rule = _RULES.get(node.operator)
        if rule is None:
            raise NotPlain(f"it has the operator {node.operator}")
        if len(node.outputs) != 1 or node.outputs[0] in shapes or node.outputs[0] in weights or not node.inputs:
            raise NotPlain(f"a node {node.operator} gives not one new tensor")
        shape, cost = rule(node, shapes, weights)
        if min(shape, default=1) < 1 or max(shape, default=1) > _MOST_SIDE:
            raise NotPlain(f"a node {node.operator} gives a tensor of {'x'.join(map(str, shape))}")
        # Weights in integers become floats, and are weights still.
        (weights if node.operator == "DequantizeLinear" and node.inputs[0] in weights else shapes)[node.outputs[0]] = shape
        size = math.prod(shape)
        values, work = values + size, work + size * cost
        if values > MOST_VALUES or work > MOST_WORK:
            raise NotPlain("it takes very much memory or time")


def _known(name: str, shapes: Mapping[str, Shape]) -> Shape:
    if name not in shapes:
        raise NotPlain("a node reads what no node before it gives")
    return shapes[name]


def _image(node: _Node, shapes: Mapping[str, Shape]) -> Shape:
    shape = _known(node.inputs[0], shapes)
    if len(shape) != 4:
        raise NotPlain(f"a node {node.operator} reads no images")
    return shape


def _same(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    return _known(node.inputs[0], shapes), 1


def _norm(node: _Node, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape = _image(node, shapes)
    if len(node.inputs) != 5 or any(_known(name, weights) != (shape[1],) for name in node.inputs[1:]) or node.numbers.get("training_mode"):
        raise NotPlain("a batch norm does not fit its input")
    return shape, 2


def _windows(node: _Node, shape: Shape, kernel: Sequence[int]) -> Shape:
    """Height and width of what windows give."""
    strides, pads = node.numbers.get("strides", (1, 1)), node.numbers.get("pads", (0, 0, 0, 0))
    if len(kernel) != 2 or len(strides) != 2 or len(pads) != 4 or min(*strides, *kernel) < 1 or min(pads) < 0:
        raise NotPlain(f"a node {node.operator} has windows that make no sense")
    if any(pad >= size for pad, size in zip(pads, (*kernel, *kernel), strict=True)):
        raise NotPlain(f"a node {node.operator} has more padding than its window")
    if any(side != 1 for side in node.numbers.get("dilations", ())) or node.numbers.get("ceil_mode", (0,))[0]:
        raise NotPlain(f"a node {node.operator} has windows of an unusual kind")
    return tuple((shape[2 + k] + pads[k] + pads[2 + k] - kernel[k]) // strides[k] + 1 for k in range(2))


def _convolution(node: _Node, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape, weight = _image(node, shapes), _known(node.inputs[1] if len(node.inputs) > 1 else "", weights)
    (groups,) = node.numbers.get("group", (1,))
    if len(weight) != 4 or groups < 1 or weight[1] * groups != shape[1] or weight[0] % groups:
        raise NotPlain("a convolution does not fit its input")
    if tuple(node.numbers.get("kernel_shape", weight[2:])) != weight[2:]:
        raise NotPlain("a convolution's window is not its weights'")
    if len(node.inputs) > 3 or any(_known(name, weights) != (weight[0],) for name in node.inputs[2:]):
        raise NotPlain("a convolution's bias does not fit")
    return (shape[0], weight[0], *_windows(node, shape, weight[2:])), math.prod(weight[1:])


def _pooling(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape, kernel = _image(node, shapes), node.numbers.get("kernel_shape", ())
    return (*shape[:2], *_windows(node, shape, kernel)), math.prod(kernel)


def _whole_pooling(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape = _image(node, shapes)
    return (*shape[:2], 1, 1), math.prod(shape[2:])


def _concat(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    parts = [_known(name, shapes) for name in node.inputs]
    rest = {(len(part), part[:1], part[2:]) for part in parts}
    if tuple(node.numbers.get("axis", ())) != (1,) or len(rest) != 1 or len(parts[0]) < 2:
        raise NotPlain("a concatenation is not one of channels")
    return (parts[0][0], sum(part[1] for part in parts), *parts[0][2:]), 1


def _gather(node: _Node, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape, index = _known(node.inputs[0], shapes), _known(node.inputs[1] if len(node.inputs) > 1 else "", weights)
    if tuple(node.numbers.get("axis", (0,))) != (1,) or len(index) != 1 or len(shape) < 2:
        raise NotPlain("a gather does not pick channels")
    return (shape[0], index[0], *shape[2:]), 1


def _flatten(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape = _known(node.inputs[0], shapes)
    if tuple(node.numbers.get("axis", (1,))) != (1,) or len(shape) < 2:
        raise NotPlain("a flatten does not keep the images apart")
    return (shape[0], math.prod(shape[1:])), 1


def _product(node: _Node, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> tuple[Shape, int]:
    shape, weight = _known(node.inputs[0], shapes), _known(node.inputs[1] if len(node.inputs) > 1 else "", weights)
    turned = tuple(node.numbers.get("transB", (0,))) == (1,)
    if len(shape) != 2 or len(weight) != 2 or node.numbers.get("transA", (0,))[0]:
        raise NotPlain("a matrix product is not of images and weights")
    outputs, inputs = weight if turned else weight[::-1]
    if inputs != shape[1] or len(node.inputs) > 3 or any(_known(name, weights) != (outputs,) for name in node.inputs[2:]):
        raise NotPlain("a matrix product does not fit its input")
    return (shape[0], outputs), inputs


def _sum(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    if len(node.inputs) != 2 or len({_known(name, shapes) for name in node.inputs}) != 1:
        raise NotPlain("a sum is not of two tensors of one shape")
    return shapes[node.inputs[0]], 1


def _multiplied(node: _Node, shapes: Mapping[str, Shape], _: Mapping[str, Shape]) -> tuple[Shape, int]:
    """Each element by one of the same place, or of its channel."""
    shape, *others = (_known(name, shapes) for name in node.inputs)
    if len(others) != 1 or others[0] not in (shape, (*shape[:2], *(1 for _ in shape[2:]))):
        raise NotPlain("a product is not of two tensors of one shape, or of images and their channels")
    return shape, 1


def _scaled(node: _Node, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> tuple[Shape, int]:
    """Quantised, or back: one scale and zero point, or one of each for each channel."""
    whole = node.operator == "DequantizeLinear" and node.inputs[0] in weights
    shape = _known(node.inputs[0], weights if whole else shapes)
    (axis,) = node.numbers.get("axis", (1,))
    if not 2 <= len(node.inputs) <= 3 or not node.numbers.keys() <= {"axis", "saturate"} or not 0 <= axis <= max(len(shape), 1):
        raise NotPlain(f"a node {node.operator} is of an unusual kind")
    each = [shape[axis : axis + 1], ()]
    if any(_known(name, weights) not in each for name in node.inputs[1:]):
        raise NotPlain(f"a node {node.operator} does not fit its input")
    return shape, 2


# The shape of what a node gives, and the work for each element of it.
_RULES = {
    "Add": _sum, "AveragePool": _pooling, "BatchNormalization": _norm, "Cast": _same, "Concat": _concat, "Conv": _convolution,
    "DequantizeLinear": _scaled, "Flatten": _flatten, "Gather": _gather, "Gemm": _product,
    "GlobalAveragePool": _whole_pooling, "HardSigmoid": _same, "HardSwish": _same, "Identity": _same,
    "MaxPool": _pooling, "Mul": _multiplied, "QuantizeLinear": _scaled, "Relu": _same, "Sigmoid": _same,
}  # fmt: skip


def _node(message: memoryview) -> _Node:
    names: dict[int, list[str]] = {1: [], 2: [], 4: []}
    numbers: dict[str, Sequence[int]] = {}
    for number, value in fields(message):
        if number in names:
            names[number].append(_text(value))
        elif number == 5:
            name, integers = _attribute(_message(value))
            if name in numbers:
                raise NotPlain("a node has an attribute twice")
            numbers[name] = integers
        elif number == 7:
            _require_own(_text(value))
        elif number not in (3, 6, 9):
            raise NotPlain("a node has parts that are not known here")
    if len(names[4]) != 1:
        raise NotPlain("a node has not one operator")
    return _Node(names[4][0], tuple(names[1]), tuple(names[2]), numbers)


def _attribute(message: memoryview) -> tuple[str, Sequence[int]]:
    name, integers = "", list[int]()
    for number, value in fields(message):
        if number == 1:
            name = _text(value)
        elif number == 3 or (number == 8 and isinstance(value, int)):
            integers.append(_integer(value))
        elif number == 8:
            integers += _packed(_message(value))
        elif number not in (2, 13, 20):
            raise NotPlain("a node has an attribute that is no number")
        if len(integers) > 8 or any(abs(integer) > _MOST_SIDE for integer in integers):
            raise NotPlain("a node has an attribute beyond all measure")
    if name in ("auto_pad", "storage_order"):
        raise NotPlain(f"a node has the attribute {name}")
    return name, integers


def _tensor(message: memoryview, most: int) -> tuple[str, Shape]:
    name, shape = "", list[int]()
    for number, value in fields(message):
        if number == 1:
            shape += [_integer(value)] if isinstance(value, int) else _packed(_message(value))
        elif number == 8:
            name = _text(value)
        elif number not in (2, 4, 5, 7, 9, 10, 11, 12):
            raise NotPlain("a weight is kept in an unusual way")
        if len(shape) > 8 or any(not 0 < side <= most for side in shape):
            raise NotPlain("a weight has a shape beyond all measure")
    if math.prod(shape) > most:
        raise NotPlain("a weight is larger than the file")
    return name, tuple(shape)


def _input(message: memoryview) -> tuple[str, Shape]:
    """The name and shape of an input; a free side counts as one, since work grows with the images that somebody gives."""
    name, shape = "", list[int]()
    for number, value in fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for kind, tensor in fields(_message(value)):
                if kind != 1:
                    raise NotPlain("an input is no tensor")
                for part, sides in fields(_message(tensor)):
                    if part == 2:
                        shape += [_side(_message(side)) for _, side in fields(_message(sides))]
    if len(shape) != 4 or any(side < 1 for side in shape):
        raise NotPlain("an input is no batch of images of a fixed size")
    return name, tuple(shape)


def _side(message: memoryview) -> int:
    size = 0
    for number, value in fields(message):
        if number == 1:
            size = _integer(value)
        elif number == 2 and not size:
            size = 1
    if not 0 < size <= _MOST_SIDE:
        raise NotPlain("an input has a side beyond all measure")
    return size


def _require_own_domain(opset: memoryview) -> None:
    for number, value in fields(opset):
        if number == 1:
            _require_own(_text(value))


def _require_own(domain: str) -> None:
    if domain not in ("", "ai.onnx"):
        raise NotPlain(f"it has operators of {domain}")


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise NotPlain(_NO_FILE)
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise NotPlain(_NO_FILE)
    return value - (1 << 64) if value >> 63 else value


def _packed(message: memoryview) -> list[int]:
    found, place = list[int](), 0
    while place < len(message):
        value, place = varint(message, place)
        found.append(_integer(value))
        if len(found) > 100:
            raise NotPlain("it has a shape beyond all measure")
    return found


def _text(value: Value) -> str:
    try:
        return bytes(_message(value)).decode()
    except UnicodeDecodeError:
        raise NotPlain("its text is damaged") from None

"""Where every map of a network lies, and which kernels run each block. All of it is decided at export."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.native.constants import LINE, MAP_SLACK, PLANE_SLACK, ROW_LEAST, WHOLE_SLACK
from cnet_deploy.exporters.native.packing import padded
from cnet_deploy.program.program import DenseLayer, Program, Transition

MAX_OFFSET = (1 << 31) - 1  # floats from the first plane of a map to its last: tables hold 32-bit offsets
WHOLE_AREA = 1100  # floats of the largest map on which several threads finish a 1x1 before they begin the 3x3
NARROW_AREA = 400  # pixels of the largest map whose transposed buffer stays in a near cache


@dataclass
class Block:
    """A dense block and the transition after it.

    ``size`` is the height and width of its map, ``channels`` the number of its planes once all layers have run, ``layout`` "wide" or
    "narrow". ``map`` and ``middle`` are offsets in floats: of the map, and of what the transition's 1x1 writes.
    """

    layers: list[DenseLayer]
    transition: Transition | None
    size: tuple[int, int]
    channels: int
    layout: str
    map: int = 0
    middle: int = 0

    @property
    def pitch(self) -> int:
        return self.size[1] + (self.layout == "wide")

    @property
    def plane(self) -> int:
        """Floats of a plane: its rows and the room after them, as an odd number of cache lines."""
        return _odd_lines(padded(self.size[0] * self.pitch, LINE) + PLANE_SLACK)

    @property
    def whole(self) -> int:
        """Floats of a plane in the shared buffer, with the zeros around the map; 0 for maps that threads do strip by strip."""
        floats = self.size[0] * self.pitch
        if self.layout == "narrow" or floats > WHOLE_AREA:
            return 0
        return _odd_lines(floats + 2 * self.pitch + WHOLE_SLACK)

    @property
    def middle_channels(self) -> int:
        return 0 if self.transition is None or self.transition.pointwise is None else self.transition.pointwise.order.size

    @property
    def updates(self) -> bool:
        """Whether its layers change the planes before them."""
        return any(layer.update is not None for layer in self.layers)

    @property
    def excited(self) -> int:
        """The most planes of a layer with excitation; 0 if no layer has any."""
        return max((len(layer.weight) for layer in self.layers if layer.excite is not None), default=0)


def _odd_lines(floats: int) -> int:
    """Rounded up to an odd number of cache lines: with an even one, planes would compete for the same places in the caches."""
    return (padded(floats, LINE) // LINE | 1) * LINE


def plain_paths(program: Program) -> list[str]:
    """The parts of a network that no fast kernel covers, a sentence for each."""
    slow = []
    if program.stem.stride > 2:
        slow.append(f"the first convolution has stride {program.stem.stride}: rows are split pixel by pixel (strides 1 and 2 use vectors)")
    for number, block in enumerate(blocks_of(program), 1):
        outputs = {len(layer.weight) // layer.groups for layer in block.layers}
        slow += [
            f"block {number}: in groups of {n} outputs, one output is computed alone"
            for n in sorted(outputs)
            if block.layout == "wide" and n % 2 and n > 1
        ]
    return slow


def blocks_of(program: Program, layouts: Sequence[str] | None = None) -> list[Block]:
    """The dense blocks of a Program, each with its layout; ``layouts`` overrides the choice."""
    height, width = ((side - 1) // program.stem.stride + 1 for side in program.architecture.input_size)
    channels = len(program.stem.weight)
    blocks: list[Block] = []
    layers: list[DenseLayer] = []

    def end(transition: Transition | None) -> None:
        layout = layouts[len(blocks)] if layouts else _layout(layers, (height, width))
        blocks.append(Block(list(layers), transition, (height, width), channels, layout))
        layers.clear()

    for layer in program.body:
        if isinstance(layer, DenseLayer):
            layers.append(layer)
            channels += len(layer.weight)
        else:
            end(layer)
            height, width = height // 2, width // 2
            if layer.pointwise is not None:
                channels = layer.pointwise.order.size
    end(None)
    return blocks


def _layout(layers: list[DenseLayer], size: tuple[int, int]) -> str:
    """Whether vectors are pixels ("wide") or output channels ("narrow"): what takes fewer multiply-adds of 16 lanes, idle ones included."""
    height, width = size
    if width < ROW_LEAST or height * width > NARROW_AREA:
        return "wide"
    wide = narrow = 0
    for layer in layers:
        conv = layer.pointwise
        inputs, rows = conv.index.size // conv.groups, len(conv.weight)
        outputs, middle = len(layer.weight) // layer.groups, layer.weight.shape[1]
        pixels = padded(height * (width + 1), 16) // 16
        wide += pixels * (rows * inputs + 9 * layer.groups * outputs * middle)
        narrow += height * width * conv.groups * padded(rows // conv.groups, 16) // 16 * inputs
        narrow += (3 * height - 2) * (3 * width - 2) * layer.groups * padded(outputs, 16) // 16 * middle
    return "narrow" if narrow < wide else "wide"


def place(blocks: list[Block]) -> int:
    """Give every map its place in one piece of memory. Neighbours get opposite ends, since only they are in use at the same time.

    Returns the size of the memory in floats. Raises InputRefused where a map is too large for the tables.
    """
    if (largest := max(block.plane * block.channels for block in blocks)) > MAX_OFFSET:
        times = largest / MAX_OFFSET
        raise InputRefused(f"a map of images of this size is {times:.1f} times too large for the tables; expected images of fewer pixels")
    sizes = [block.plane * block.channels + MAP_SLACK for block in blocks]
    total = max([a + b for a, b in itertools.pairwise(sizes)] + sizes)
    for number, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        block.map = 0 if number % 2 == 0 else total - size
        block.middle = total
    # Planes that wait for their excitation lie where the middle of a transition would: no network has both.
    waiting = max(block.plane * max(block.middle_channels, block.excited) for block in blocks)
    return total + waiting + MAP_SLACK

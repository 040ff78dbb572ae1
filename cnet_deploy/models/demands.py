"""What running a network takes, from its architecture alone: a file may claim images of any size for a small network."""

from __future__ import annotations

from cnet_deploy.errors import InputRefused
from cnet_deploy.hardware.cpu import memory_bytes
from cnet_deploy.models.architecture import Architecture, DenseLayerShape

MAX_MACS = 10**13  # multiply-adds for one image: minutes. The largest of the paper's networks have 6 * 10**8
_COPIES = 4  # of a layer's input: the map, scaled, after the ReLU, gathered


def bytes_for(arch: Architecture, images: int = 1) -> int:
    """An estimate of the memory that running so many images at once takes: the layer with the largest maps, in float32."""
    numbers = arch.image_shape[0] * arch.image_shape[1] * arch.image_shape[2]
    largest = 0
    for layer in arch.layers():
        channels = layer.pointwise.in_channels if layer.pointwise is not None else 0
        channels = max(channels, 0 if isinstance(layer, DenseLayerShape) else layer.channels)
        middle = layer.pointwise.out_channels if layer.pointwise is not None else 0
        largest = max(largest, layer.size[0] * layer.size[1] * (_COPIES * channels + 2 * middle))
    return 4 * images * (numbers + largest)


def images_at_once(arch: Architecture) -> int | None:
    """How many images to run at once where a single one takes much memory; None where it does not."""
    if (each := bytes_for(arch)) < 256 << 20:
        return None
    return max(1, memory_bytes() // 4 // each)


def require_runnable(arch: Architecture, images: int = 1) -> None:
    """Raise InputRefused for a network that takes more memory than the machine has, or more work than anyone waits for."""
    size = "x".join(map(str, arch.input_size))
    if (needed := bytes_for(arch, images)) > (there := memory_bytes()):
        what = "an image" if images == 1 else f"{images} images"
        raise InputRefused(
            f"reads images of {size} pixels, and {what} would take some {needed / 2**30:.1f} GiB of memory; this machine has "
            f"{there / 2**30:.1f}: check the size that it states, or give another with --input-size"
        )
    if (macs := arch.cost("training").macs) > MAX_MACS:
        raise InputRefused(
            f"reads images of {size} pixels, and one would take {macs:.1e} multiply-adds; expected at most {MAX_MACS:.0e}: check the size "
            "that it states, or give another with --input-size"
        )

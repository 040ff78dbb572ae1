"""What an ONNX file takes and gives: one reader of its inputs, outputs and metadata, for all runtimes.

A runtime tells which inputs and outputs it sees. A file that is no image classifier is refused, with the tool that mends it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnet_deploy.artifacts.onnx_metadata import OnnxMetadata, check_metadata, read_metadata
from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.images.preprocessing import CHANNELS
from cnet_deploy.models.architecture import Architecture

MOST_NUMBERS = 1 << 29  # of the images of one inference, and of its logits: 2 GiB in float32
_FP16 = "onnxconverter_common.float16.convert_float_to_float16(model, keep_io_types=True)"


@dataclass(frozen=True)
class Value:
    """An input or an output: its name, the type of its elements as numpy calls it, and its shape.

    A side that is free is None; so is a shape whose number of sides is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('any' if side is None else str(side) for side in self.shape)}]"


@dataclass(frozen=True)
class Interface:
    """An image classifier: the names of its input and output, the shape [N, channels, H, W] that it reads (N is None if it is free), its
    number of classes, and the file's metadata."""

    input: str
    output: str
    input_shape: tuple[int | None, int, int, int]
    classes: int
    metadata: OnnxMetadata


def read_interface(
    inputs: Sequence[Value], outputs: Sequence[Value], entries: Mapping[str, str], *, input_size: tuple[int, int] | None = None,
    stated: Architecture | None = None,
) -> Interface:  # fmt: skip
    """The interface of an image classifier.

    ``entries`` are the file's metadata. ``input_size`` (height, width) fixes sides that the graph leaves free; ``stated`` is the manifest's
    architecture. Raises InputRefused for a file that is no image classifier, and for metadata or a manifest of another network.
    """
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputRefused(_not_one(inputs, outputs))
    image, logits = inputs[0], outputs[0]
    metadata = read_metadata(entries)
    shape = _image_shape(image, logits, input_size)
    classes = _classes(image, logits, shape)
    for what, count in (("read", math.prod(side or 1 for side in shape)), ("give", (shape[0] or 1) * classes)):
        if count > MOST_NUMBERS:
            raise InputRefused(
                f"reads {image} and gives {logits}: it would {what} {count:,} numbers at once, and at most {MOST_NUMBERS:,} fit; export it "
                "again with a free batch, or a smaller one"
            )
    check_metadata(metadata, shape[2:], classes, stated, shape[1])
    return Interface(image.name, logits.name, shape, classes, metadata)


def _not_one(inputs: Sequence[Value], outputs: Sequence[Value]) -> str:
    """Why a file without exactly one input and one output can't be used. The likely ones are named in the command that cuts it."""
    image = next((value for value in inputs if value.shape is not None and len(value.shape) == 4), None)
    logits = next((value for value in outputs if value.shape is not None and len(value.shape) == 2), None)
    names = [f"'{printable(value.name, 60)}'" if value is not None else other for value, other in ((image, "IMAGE"), (logits, "LOGITS"))]
    return (
        f"has {_listed('input', inputs)} and {_listed('output', outputs)}; expected an image in and logits out: cut the classifier "
        f"out with onnx.utils.extract_model('model.onnx', 'classifier.onnx', [{names[0]}], [{names[1]}])"
    )


def _listed(what: str, values: Sequence[Value]) -> str:
    names = ", ".join(printable(value.name, 60) for value in values[:5])
    return f"{len(values)} {what}{'' if len(values) == 1 else 's'}" + (f" ({names})" if len(values) > 1 else "")


def _image_shape(image: Value, logits: Value, input_size: tuple[int, int] | None) -> tuple[int | None, int, int, int]:
    begin = f"reads {image}; expected float32 [N, channels, height, width]"
    if image.dtype == "float16":
        raise InputRefused(f"{begin}: make the fp16 file anew with float32 images, as {_FP16} does")
    if image.dtype != "float32":
        raise InputRefused(
            f"{begin}: leave the steps before the first layer out, with onnx.utils.extract_model('model.onnx', 'classifier.onnx', "
            "[TENSOR], [LOGITS]), where TENSOR is the float32 tensor that this layer reads"
        )
    if image.shape is None or len(image.shape) != 4:
        raise InputRefused(f"{begin}: export it again for batches of images, as torch.onnx.export(model, torch.zeros(1, 3, 224, 224), …)")
    batch, channels, height, width = image.shape
    if channels is None or channels not in CHANNELS:
        if image.shape[3] in CHANNELS:
            raise InputRefused(
                f"{begin}, channels first: convert it with tf2onnx and --inputs-as-nchw {printable(image.name, 60)}, or put a Transpose in "
                "front with onnx.compose.merge_models"
            )
        mend = _fixing(image, logits) if channels is None else ": give a network of images"
        raise InputRefused(f"{begin}, with 1, 3 or 4 channels{mend}")
    if input_size is not None:
        for free, wanted in zip((height, width), input_size, strict=True):
            if free not in (None, wanted):
                fixed = "x".join("any" if side is None else str(side) for side in (height, width))
                raise InputRefused(f"reads images of {fixed} pixels, fixed in its graph; expected no other input size: leave it out")
        height, width = input_size
    if height is None or width is None:
        raise InputRefused(
            "reads images of any size; expected one size: give it with --input-size 224 or --input-size HEIGHTxWIDTH (in Python "
            "input_size=(224, 224))"
        )
    if min(height, width) < 1 or batch == 0:
        raise InputRefused(f"reads {image}; expected at least one pixel and one image")
    return batch, channels, height, width


def _classes(image: Value, logits: Value, shape: tuple[int | None, ...]) -> int:
    begin = f"gives {logits}; expected float32 logits [N, classes]"
    if logits.dtype == "float16":
        raise InputRefused(f"{begin}: make the fp16 file anew with float32 logits, as {_FP16} does")
    if logits.dtype != "float32":
        raise InputRefused(
            f"{begin}: leave the steps after the classifier out, with onnx.utils.extract_model('model.onnx', 'classifier.onnx', "
            f"['{printable(image.name, 60)}'], [LOGITS])"
        )
    if logits.shape is not None and len(logits.shape) != 2:
        raise InputRefused(f"{begin}: export it with torch.nn.Flatten(1) at its end, or what takes the place of it")
    if logits.shape is None or not logits.shape[1]:
        raise InputRefused(begin + _fixing(image, logits, shape))
    return logits.shape[1]


def _fixing(image: Value, logits: Value, shape: tuple[int | None, ...] = (None, 3, 224, 224)) -> str:
    sides = ", ".join("'N'" if side is None else str(side) for side in shape)
    names = (printable(value.name, 60) for value in (image, logits))
    return (
        ": write its shapes into it: onnx.save(onnx.tools.update_model_dims.update_inputs_outputs_dims(onnx.load('model.onnx'), "
        f"{{'{next(names)}': [{sides}]}}, {{'{next(names)}': ['N', CLASSES]}}), 'fixed.onnx')"
    )

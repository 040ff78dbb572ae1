"""What a network of the family is, apart from its weights: shape, names of the paper's models, cost in closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import InvalidValue, closed, coerce_fields, convert
from cnet_deploy.images.preprocessing import CHANNELS, Size

Kind = Literal["condensenet", "condensenet_v2", "densenet", "densenet_lgc"]
DEFAULT_KEEP = 0.5  # the reference halves the classifier's inputs at conversion, and the published counts include that
Form = Literal["training", "group-conv"]
FinalPool = Literal["whole", "original"]
_V2 = ("update_groups", "hard_swish_from", "excitation_from", "excitation_channels", "hidden_channels")  # fields of CondenseNet V2 alone
_LEFT_OUT: Mapping[str, Any] = {"final_pool": "whole", "image_channels": 3} | dict.fromkeys(_V2)  # by to_dict
_MOST = (1 << 24) - 1
Number = Annotated[int, Meta(ge=1, le=_MOST, description=f"a whole number from 1 to {_MOST}")]


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    ``flops`` is the count of the reference (utils.py): one per multiply-add of convolutions and the classifier, one per
    bias of the classifier, one per element of every ReLU, and kernel-area times outputs of every pooling. For CondenseNet V2 it is that of
    its reference (utils/tools.py): no biases, two per element of a sigmoid, and nothing for what excitation multiplies and an update adds;
    ``macs`` is the multiply-adds alone. ``params`` counts weights, biases and the gains and shifts of batch norms.
    """

    flops: int
    macs: int
    params: int


@dataclass(frozen=True)
class PointwiseShape:
    """A batch norm, ReLU and 1x1 convolution: the first half of a dense layer, or the convolution of a transition."""

    name: str
    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class DenseLayerShape:
    """One dense layer: its 1x1 convolution, and the growth that its 3x3 adds to the map of ``size`` (height, width).

    In CondenseNet V2 ``update`` is the 1x1 from what the 3x3 made to the channels before it, and ``excited`` whether what the 3x3 made is
    excited first. ``block`` counts from 1.
    """

    name: str
    pointwise: PointwiseShape
    growth: int
    size: tuple[int, int]
    block: int
    update: PointwiseShape | None = None
    excited: bool = False


@dataclass(frozen=True)
class TransitionShape:
    """What lies between two dense blocks: a 1x1 convolution or none, then 2x2 average pooling that halves ``size``."""

    name: str
    channels: int
    pointwise: PointwiseShape | None
    size: tuple[int, int]


@closed
@dataclass(frozen=True)
class Architecture:
    """The shape of a CondenseNet, CondenseNet V2, DenseNet or DenseNet with learned group convolutions.

    ``stages`` layers per dense block, each layer adding ``growth`` channels of its block; the 1x1 makes
    ``bottleneck * growth`` channels in ``group_1x1`` groups (G), each reading 1/``condense_factor`` (C) of its inputs; the
    3x3 has ``group_3x3`` groups. ``classifier_keep`` is the share of the features that the classifier of the group-conv form
    reads. ``transition_channels`` are the widths after each transition, where transitions have convolutions (DenseNet).
    ``input_size`` is (height, width) in pixels. ``final_pool`` is what the last pooling averages: the "whole" map, or the "original"
    window of 7x7 (stem stride 2) or 8x8 at its top left (reference: models/condensenet.py, AvgPool2d and view). The two are the same where
    the map has just that size, as for 224 and 32 pixels. ``image_channels`` is 1 for grey images, 3 for RGB, 4 for RGBA.

    CondenseNet V2 alone has five more: ``update_groups`` (T) of the 1x1 that updates the channels before a layer, of which each writes 1/T;
    the block (from 1) from which activations are hard swish, ``hard_swish_from``, and from which layers have excitation,
    ``excitation_from`` (one more than there are blocks: nowhere); the width of the last excitation, ``excitation_channels``, and of the
    layer before the classifier, ``hidden_channels``. Its classifier is never condensed.

    Raises InputRefused where a number can't be: not positive, channels that groups don't divide, or a map that the original window does
    not fit just once.
    """

    stages: tuple[Number, ...]
    growth: tuple[Number, ...]
    kind: Kind = "condensenet"
    bottleneck: Number = 4
    group_1x1: Number = 4
    group_3x3: Number = 4
    condense_factor: Number = 4
    classes: Number = 1000
    stem_stride: Number = 2
    input_size: Size = (224, 224)
    classifier_keep: Annotated[float, Meta(gt=0, le=1, description="a number over 0, at most 1")] = DEFAULT_KEEP
    transition_channels: tuple[Number, ...] = ()
    final_pool: FinalPool = "whole"
    image_channels: Literal[1, 3, 4] = 3
    update_groups: Number | None = None
    hard_swish_from: Number | None = None
    excitation_from: Number | None = None
    excitation_channels: Number | None = None
    hidden_channels: Number | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, "architecture")
        _check(self)

    @classmethod
    def from_name(cls, name: str) -> Architecture:
        """One of the papers' models, as published: ``condensenet-74-g4``, ``condensenet-50``, ``condensenet-v2-a`` …

        The ImageNet models have the halved classifier (their table counts it), the CIFAR models the whole one.
        Raises InputRefused for an unknown name.
        """
        try:
            return _named()[name]
        except KeyError:
            raise InputRefused(f"no model is called {name!r}; expected one of {', '.join(_named())}") from None

    @classmethod
    def v2(
        cls,
        stages: tuple[int, ...],
        growth: tuple[int, ...],
        *,
        groups: int = 8,
        hard_swish_from: int = 3,
        excitation_from: int = 4,
        hidden_channels: int = 1024,
        **more: Any,
    ) -> Architecture:
        """A CondenseNet V2 with the same number of ``groups`` everywhere, as all published ones have, where ``more`` has no other.

        The last excitation is a sixteenth of the features wide, at least 1 (their repository: model/condensenetv2.py). ``more`` are other
        fields. Raises InputRefused as the class does.
        """
        features = 2 * growth[0] + sum(count * each for count, each in zip(stages, growth, strict=False))
        everywhere = dict.fromkeys(("group_1x1", "group_3x3", "condense_factor", "update_groups"), groups)
        fields = {**everywhere, "excitation_channels": max(1, features // 16), **more}
        return cls(
            stages, growth, "condensenet_v2", classifier_keep=1.0, hard_swish_from=hard_swish_from, excitation_from=excitation_from,
            hidden_channels=hidden_channels, **fields,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The inverse of ``to_dict``. Raises InputRefused for entries that are missing, unknown or of another type."""
        return convert(values, cls, "architecture")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; tuples become lists. What is as in most files, and as version 0.1.0 knew it, is left out."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {key: v for key, v in values.items() if _LEFT_OUT.get(key) != v}

    # ---- the network, layer by layer -------------------------------------------------------------------------------

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self.image_channels, *self.input_size)

    @property
    def stem_channels(self) -> int:
        return 2 * self.growth[0]

    @property
    def learned(self) -> bool:
        """Whether its 1x1 convolutions are learned group convolutions (all kinds but plain DenseNet)."""
        return self.kind != "densenet"

    @property
    def has_transition_convs(self) -> bool:
        return self.kind in ("densenet", "densenet_lgc")

    @property
    def updates(self) -> bool:
        """Whether its layers update the channels before them: CondenseNet V2."""
        return self.kind == "condensenet_v2"

    @property
    def condenses_classifier(self) -> bool:
        """Whether the classifier of its group-conv form has an index, and may keep a part of the features."""
        return self.kind in ("condensenet", "densenet_lgc")

    @property
    def usual_keep(self) -> float:
        """The share of features that the classifier keeps at conversion, if nothing else is asked for."""
        return DEFAULT_KEEP if self.condenses_classifier else 1.0

    def layers(self) -> Iterator[DenseLayerShape | TransitionShape]:
        """Dense layers and transitions in the order in which they run."""
        channels = self.stem_channels
        size = tuple((side - 1) // self.stem_stride + 1 for side in self.input_size)
        for block, (count, growth) in enumerate(zip(self.stages, self.growth, strict=True)):
            for index in range(count):
                name = f"features.denseblock_{block + 1}.denselayer_{index + 1}"
                pointwise = PointwiseShape(f"{name}.conv_1", channels, self.bottleneck * growth)
                number = block + 1
                update = PointwiseShape(f"{name}.sfr", growth, channels) if self.updates else None
                excited = self.excitation_from is not None and number >= self.excitation_from
                yield DenseLayerShape(name, pointwise, growth, (size[0], size[1]), number, update, excited)
                channels += growth
            if block < len(self.stages) - 1:
                name = f"features.transition_{block + 1}"
                conv = None
                if self.has_transition_convs:
                    conv = PointwiseShape(f"{name}.conv", channels, self.transition_channels[block])
                    channels = conv.out_channels
                yield TransitionShape(name, channels, conv, (size[0], size[1]))
                size = tuple(side // 2 for side in size)

    def pointwise_convs(self) -> Iterator[PointwiseShape]:
        """Every 1x1 convolution in the order in which it runs, without those of updates."""
        for layer in self.layers():
            if layer.pointwise is not None:
                yield layer.pointwise

    def updating_convs(self) -> Iterator[PointwiseShape]:
        """Every 1x1 convolution that updates channels, in the order in which it runs: from a layer's new channels to those before it."""
        for layer in self.layers():
            if isinstance(layer, DenseLayerShape) and layer.update is not None:
                yield layer.update

    @property
    def features(self) -> int:
        """Channels of the last map, before the classifier."""
        last = list(self.layers())[-1]
        assert isinstance(last, DenseLayerShape)
        return last.pointwise.in_channels + last.growth

    @property
    def final_size(self) -> tuple[int, int]:
        """Height and width of the last map."""
        return list(self.layers())[-1].size

    @property
    def original_window(self) -> int:
        """Rows and columns of the window that the original averages (reference: models/condensenet.py: 7 for ImageNet, 8 for CIFAR)."""
        return 7 if self.stem_stride == 2 else 8

    @property
    def pool_window(self) -> tuple[int, int]:
        """Height and width of what the last pooling averages, from the top left of the last map."""
        return (self.original_window, self.original_window) if self.final_pool == "original" else self.final_size

    @property
    def pools_as_original(self) -> bool | None:
        """Whether the last pooling gives what the original gives; None where the original can't run: its window must fit just once."""
        window = self.original_window
        if not all(window <= side < 2 * window for side in self.final_size):
            return None
        return self.pool_window == (window, window)

    @property
    def kept_features(self) -> int:
        """Features that the classifier of the group-conv form reads (the reference's ``int(features * keep)``)."""
        return math.floor(self.features * self.classifier_keep + 1e-6)

    def gathered(self, conv: PointwiseShape) -> int:
        """Channels that a 1x1 of the group-conv form reads, counted once per group: in_channels * G / C."""
        return conv.in_channels * self.group_1x1 // self.condense_factor if self.learned else conv.in_channels

    # ---- cost ------------------------------------------------------------------------------------------------------

    def cost(self, form: Form = "group-conv") -> Cost:
        """What a form costs as it is executed: the training form runs its 1x1 dense under a mask, classifier whole."""
        dense = form == "training" and self.learned
        groups = 1 if dense else self.update_groups or 1
        params = stem = 9 * self.image_channels * self.stem_channels
        final = math.prod(self.final_size) + math.prod(self.pool_window)  # elements of the last ReLU, and of the last pooling
        stem_size = next(self.layers()).size
        macs = stem * stem_size[0] * stem_size[1]
        others = 0  # ReLUs, poolings and the classifier's bias: in the reference's count, not in the multiply-adds
        for layer in self.layers():
            area = layer.size[0] * layer.size[1]
            if conv := layer.pointwise:
                width = conv.in_channels if dense else self.gathered(conv)
                weights = width * conv.out_channels // (1 if dense else self.group_1x1)
                params += weights + 2 * width
                macs += weights * area
                others += width * area
            if isinstance(layer, DenseLayerShape):
                middle = layer.pointwise.out_channels
                weights = 9 * middle * layer.growth // self.group_3x3
                params += weights + 2 * middle
                macs += weights * area
                others += middle * area
                if layer.update is not None:
                    weights = layer.growth * layer.update.out_channels // groups
                    params += weights + 2 * layer.growth
                    macs += weights * area
                    others += layer.growth * area
                if layer.excited:  # a pooling, two matrices, ReLU, sigmoid
                    weights = 2 * layer.growth**2
                    params, macs, others = params + weights, macs + weights, others + layer.growth * (area + 3)
            else:
                others += 4 * layer.channels * (layer.size[0] // 2) * (layer.size[1] // 2)
        params += 2 * self.features
        others += self.features * final
        if self.updates:
            assert self.excitation_channels is not None and self.hidden_channels is not None
            excitation, hidden = 2 * self.features * self.excitation_channels, self.hidden_channels
            linear = self.features * hidden + hidden * self.classes
            params += excitation + linear + hidden + self.classes
            macs += excitation + linear
            # The last excitation's pooling of one pixel, its ReLU and sigmoid; the hard swish.
            others += self.features + self.excitation_channels + 2 * self.features + hidden
        else:
            linear = (self.features if dense else self.kept_features) * self.classes
            params += linear + self.classes
            macs += linear
            others += self.classes
        return Cost(macs + others, macs, params)

    @property
    def flops(self) -> int:
        """The reference's count for the group-conv form (see Cost)."""
        return self.cost().flops

    @property
    def macs(self) -> int:
        """Multiply-adds of the group-conv form."""
        return self.cost().macs

    @property
    def params(self) -> int:
        """Learned parameters of the group-conv form."""
        return self.cost().params

    def summary(self) -> str:
        """One line for people."""
        kind = "" if self.image_channels == 3 else f" {CHANNELS[self.image_channels]}"
        groups = f"G={self.group_1x1} C={self.condense_factor}" if self.learned else f"G={self.group_1x1}"
        groups += f" T={self.update_groups}" if self.updates else ""
        return (
            f"{self.kind} {'-'.join(map(str, self.stages))} growth {'-'.join(map(str, self.growth))} bottleneck {self.bottleneck} "
            f"{groups} 3x3 groups {self.group_3x3}, {self.classes} classes, "
            f"{self.input_size[0]}x{self.input_size[1]}{kind} stem stride {self.stem_stride}, {self._head_summary()}{self._pool_summary()}"
        )

    def _head_summary(self) -> str:
        if not self.updates:
            return f"classifier keep {self.classifier_keep:g}"
        swish, excitation = (
            f"from block {first}" if first is not None and first <= len(self.stages) else "nowhere"
            for first in (self.hard_swish_from, self.excitation_from)
        )
        last = f"excitation {excitation} and {self.excitation_channels} wide at the end"
        return f"hard swish {swish}, {last}, hidden layer {self.hidden_channels}"

    def _pool_summary(self) -> str:
        """What the last pooling averages, where that is not what the original averages or not the whole map."""
        if self.final_pool == "whole" and self.final_size == (self.original_window,) * 2:
            return ""
        text = f", final pool {self.final_pool}"
        (height, width), window = self.final_size, self.original_window
        return text + (f" ({height}x{width})" if self.final_pool == "whole" else f" ({window}x{window} of {height}x{width})")


def _check(arch: Architecture) -> None:
    """What the fields' types can't express."""

    def refuse(reason: str) -> None:
        raise InvalidValue(f"architecture: {reason}")

    if not arch.stages or len(arch.stages) != len(arch.growth):
        refuse(f"{len(arch.stages)} stages and {len(arch.growth)} growth rates; expected as many of each, and at least one")
    if sum(arch.stages) > 10_000:
        refuse(f"{sum(arch.stages)} layers; expected at most 10000")
    if not arch.learned and (arch.classifier_keep != 1 or arch.condense_factor != 1):
        refuse("a plain DenseNet has nothing condensed; expected condense_factor 1 and classifier_keep 1")
    _check_updates(arch, refuse)
    expected = len(arch.stages) - 1 if arch.has_transition_convs else 0
    if len(arch.transition_channels) != expected:
        refuse(f"{len(arch.transition_channels)} transition widths; expected {expected} for {arch.kind} of {len(arch.stages)} stages")
    layers = list(arch.layers())
    if min(layers[-1].size) < 1:
        refuse(f"input size {arch.input_size} is too small: nothing is left of the map after {len(arch.stages) - 1} transitions")
    if arch.final_pool == "original" and arch.pools_as_original is None:
        (height, width), window = layers[-1].size, arch.original_window
        least = window << (len(arch.stages) - 1)  # rows and columns of the first map
        sizes = f"{(least - 1) * arch.stem_stride + 1} to {(2 * least - 1) * arch.stem_stride}"
        refuse(
            f"final_pool original averages {window}x{window} pixels of the last map, which is {height}x{width} here; expected an input of "
            f"{sizes} pixels a side, where that window fits just once, or final_pool whole (--final-pool whole), which averages any map"
        )
    if arch.kept_features < 1:
        refuse(f"classifier_keep {arch.classifier_keep} leaves none of {arch.features} features")
    for conv in (layer.pointwise for layer in layers if layer.pointwise is not None):
        for what, count, by, groups in (
            ("input", conv.in_channels, "condense factor", arch.condense_factor if arch.learned else 1),
            ("input", arch.gathered(conv), "1x1 groups", arch.group_1x1),
            ("output", conv.out_channels, "1x1 groups", arch.group_1x1),
        ):
            if count % groups:
                refuse(f"{conv.name} has {count} {what} channels; expected a multiple of {groups} ({by})")
    for growth in arch.growth:
        if growth % arch.group_3x3 or (arch.bottleneck * growth) % arch.group_3x3:
            refuse(f"growth {growth} with bottleneck {arch.bottleneck}; expected multiples of {arch.group_3x3} (3x3 groups)")


def _check_updates(arch: Architecture, refuse: Callable[[str], None]) -> None:
    """What CondenseNet V2 has beyond the others."""
    given = {name: getattr(arch, name) for name in _V2}
    if wrong := [name for name, value in given.items() if (value is None) == arch.updates]:
        what = f"a {arch.kind} has no" if not arch.updates else "a condensenet_v2 needs"
        refuse(f"{what} {', '.join(wrong)}")
    if not arch.updates:
        return
    if arch.classifier_keep != 1:
        refuse(f"classifier_keep {arch.classifier_keep:g}; expected 1: the classifier of CondenseNet V2 is not condensed")
    for name in ("hard_swish_from", "excitation_from"):
        if given[name] > len(arch.stages) + 1:
            refuse(f"{name} {given[name]}; expected a block from 1 to {len(arch.stages)}, or {len(arch.stages) + 1} for none")
    if wrong_growth := next((growth for growth in arch.growth if growth % given["update_groups"]), 0):
        refuse(f"growth {wrong_growth}; expected a multiple of update_groups {given['update_groups']}")
    for conv in arch.updating_convs():
        if conv.out_channels % given["update_groups"]:
            refuse(f"{conv.name} has {conv.out_channels} output channels; expected a multiple of update_groups {given['update_groups']}")


@functools.cache
def _named() -> Mapping[str, Architecture]:
    imagenet = Architecture((4, 6, 8, 10, 8), (8, 16, 32, 64, 128))
    models = {
        "condensenet-74-g4": imagenet,
        "condensenet-74-g8": replace(imagenet, group_1x1=8, group_3x3=8, condense_factor=8),
    }
    for depth in (50, 74, 86, 98, 110, 122, 182):
        growth = (12, 24, 48) if depth == 182 else (8, 16, 32)
        layers = (depth - 2) // 6
        models[f"condensenet-{depth}"] = Architecture(
            (layers,) * 3, growth, classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=1.0
        )
    v2: tuple[tuple[str, tuple[int, ...], tuple[int, ...], int, int], ...] = (
        ("a", (1, 1, 4, 6, 8), (8, 8, 16, 32, 64), 8, 828),
        ("b", (2, 4, 6, 8, 6), (6, 12, 24, 48, 96), 6, 1024),
        ("c", (4, 6, 8, 10, 8), (8, 16, 32, 64, 128), 8, 1024),
    )
    for letter, blocks, widths, groups, hidden in v2:
        models[f"condensenet-v2-{letter}"] = Architecture.v2(blocks, widths, groups=groups, hidden_channels=hidden)
    return models


if TYPE_CHECKING:
    NAMED: Mapping[str, Architecture]
else:

    def __getattr__(name: str) -> Mapping[str, Architecture]:
        """``NAMED``, built when it is first used: that takes 4 ms, and commands that run artifacts need none of it."""
        if name == "NAMED":
            return _named()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


OTHERS: tuple[str, ...] = ("vgg-16", "resnet-18", "mobilenet-1.0-224")  # the table's networks of other families


CLASSES = 1000
INPUT_SIZE = (224, 224)

"""How a network is trained: the numbers of the reference's recipe, and the learning rate and stage of each step. No torch here.

Reference: main.py (options, adjust_learning_rate) and layers.py (LearnedGroupConv._check_drop).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import Positive, coerce_fields, convert
from cnet_deploy.models.architecture import Architecture, Kind

MODELS: dict[str, Kind] = {
    "condensenet": "condensenet", "condensenet_v2": "condensenet_v2", "densenet": "densenet", "densenet_LGC": "densenet_lgc",
}  # fmt: skip
"""The reference's names of its models, as its checkpoints have them, and CondenseNet V2."""
_MOST = (1 << 31) - 1
Number = Annotated[int, Meta(ge=1, le=_MOST, description=f"a whole number from 1 to {_MOST}")]
Weight = Annotated[float, Meta(ge=0, le=sys.float_info.max, description="a finite number from 0")]
Share = Annotated[float, Meta(ge=0, lt=1, description="a number from 0, under 1")]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Defaults are the reference's. ``batch_size`` counts the images of one step on all processes together.

    ``lr`` is the learning rate at the start; ``group_lasso_lambda`` weighs the group lasso (the paper's ImageNet models: 1e-5);
    ``label_smoothing`` is the share of each label that is spread over all classes (Szegedy et al., 2016; CondenseNet V2: 0.1);
    ``precision`` is that of the convolutions: "bf16" is autocast, with weights, sums and batch norms in float32.
    ``channels_last`` is the memory format of images and maps. Raises InputRefused for a number out of its bounds.
    """

    epochs: Number = 120
    batch_size: Number = 256
    lr: Positive = 0.1
    lr_type: Literal["cosine", "multistep"] = "cosine"
    momentum: Share = 0.9
    weight_decay: Weight = 1e-4
    group_lasso_lambda: Weight = 0.0
    dropout_rate: Share = 0.0
    label_smoothing: Share = 0.0
    seed: Annotated[int, Meta(ge=0, le=_MOST, description=f"a whole number from 0 to {_MOST}")] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        coerce_fields(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of ``to_dict``; what is unknown is left out. Raises InputRefused for entries of another type."""
        return convert(values, cls, "recipe")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)

    def learning_rate(self, epoch: int, step: int, steps: int, small_images: bool) -> float:
        """The learning rate of a step (from 0) of ``steps`` in an epoch (from 0).

        Cosine (Loshchilov and Hutter, 2017) falls with every step to 0. Multistep divides by 10 at 1/2 and 3/4 of the epochs for
        CIFAR's ``small_images``, else every 30 epochs (reference: main.py, adjust_learning_rate).
        """
        if self.lr_type == "cosine":
            return 0.5 * self.lr * (1 + math.cos(math.pi * (epoch * steps + step) / (self.epochs * steps)))
        if small_images:
            return self.lr * (0.01 if epoch >= self.epochs * 0.75 else 0.1 if epoch >= self.epochs * 0.5 else 1.0)
        return float(self.lr * 0.1 ** (epoch // 30))


def stage_at(done: int, total: int, condense_factor: int) -> int:
    """The condensation stage, 0 to C-1, after ``done`` of ``total`` steps: C-1 stages of equal length fill the first half of training
    (paper, section 3.1 and figure 5; reference: layers.py, _check_drop).

    >>> [stage_at(done, 60, 4) for done in (0, 9, 10, 19, 20, 29, 30, 60)]
    [0, 0, 1, 1, 2, 2, 3, 3]
    """
    return min(condense_factor - 1, 2 * done * (condense_factor - 1) // total)


def architecture_of(
    model: str, stages: tuple[int, ...], growth: tuple[int, ...], *, classes: int, input_size: tuple[int, int],
    stem_stride: int | None = None, bottleneck: int = 4, group_1x1: int = 4, group_3x3: int = 4, condense_factor: int = 4,
    reduction: float = 0.5, hs_from: int | None = None, se_from: int | None = None, hidden_channels: int | None = None,
) -> Architecture:  # fmt: skip
    """The Architecture that the reference's options describe; ``reduction`` is the share of channels that a DenseNet's transition keeps,
    rounded up to a multiple of ``group_1x1`` (reference: models/densenet.py, add_block).

    ``hs_from``, ``se_from`` and ``hidden_channels`` are CondenseNet V2's alone: the blocks (from 1) from which activations are hard swish
    and layers have excitation, and the width of the layer before the classifier. None is as published: the last three and the last two
    blocks, but never the first, and 1024. The groups of its updates are as many as the condense factor.

    ``stem_stride`` None is 1 for images up to 64 pixels, else 2. Raises InputRefused for another model, for numbers that don't fit, and for
    CondenseNet V2's where the model is another.
    """
    if model not in MODELS:
        raise InputRefused(f"no model is called {model!r}; expected one of {', '.join(MODELS)}")
    kind = MODELS[model]
    if not 0 < reduction <= 1:
        raise InputRefused(f"reduction is {reduction}; expected more than 0 and at most 1")
    factor = condense_factor if kind != "densenet" else 1
    stride = stem_stride or (1 if max(input_size) <= 64 else 2)
    own = {"--hs-from": hs_from, "--se-from": se_from, "--hidden-channels": hidden_channels}
    if kind == "condensenet_v2":
        second = min(2, len(stages))
        hs_from, se_from = hs_from or max(second, len(stages) - 2), se_from or max(second, len(stages) - 1)
        return Architecture.v2(
            stages, growth, hard_swish_from=hs_from, excitation_from=se_from, hidden_channels=hidden_channels or 1024,
            bottleneck=bottleneck, group_1x1=group_1x1, group_3x3=group_3x3, condense_factor=factor, update_groups=factor, classes=classes,
            stem_stride=stride, input_size=input_size,
        )  # fmt: skip
    if given := [flag for flag, value in own.items() if value is not None]:
        raise InputRefused(f"{given[0]} is an option of condensenet_v2 alone, and the model is {model}; leave it out")
    widths: list[int] = []
    if kind != "condensenet" and len(stages) == len(growth):
        channels = 2 * growth[0]
        for count, rate in list(zip(stages, growth, strict=True))[:-1]:
            wanted = math.ceil((channels + count * rate) * reduction)
            channels = -(-wanted // group_1x1) * group_1x1
            widths.append(channels)
    return Architecture(
        stages, growth, kind, bottleneck, group_1x1, group_3x3, factor, classes, stride, input_size, classifier_keep=1.0,
        transition_channels=tuple(widths),
    )  # fmt: skip

"""How a network is trained: the numbers of the reference's recipe and what they say for each step. No torch here.

Reference: main.py (options, adjust_learning_rate) and layers.py (LearnedGroupConv._check_drop).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture, Kind

MODELS: dict[str, Kind] = {"condensenet": "condensenet", "densenet": "densenet", "densenet_LGC": "densenet_lgc"}
"""The reference's names of its models, as its checkpoints have them."""


@dataclass(frozen=True)
class Recipe:
    """Defaults are the reference's. ``batch_size`` counts the images of one step on all processes together.

    ``lr`` is the learning rate at the start; ``group_lasso_lambda`` weighs the group lasso (the paper's ImageNet models: 1e-5);
    ``precision`` is that of the convolutions: "bf16" is autocast, with weights, sums and batch norms in float32.
    ``channels_last`` is the memory format of images and maps.
    """

    epochs: int = 120
    batch_size: int = 256
    lr: float = 0.1
    lr_type: Literal["cosine", "multistep"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    group_lasso_lambda: float = 0.0
    dropout_rate: float = 0.0
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if not low <= getattr(self, name) < 1 << 31:
                raise InputRefused(f"{name} is {getattr(self, name)}; expected at least {low}")
        for name in ("lr", "momentum", "weight_decay", "group_lasso_lambda", "dropout_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputRefused(f"{name} is {getattr(self, name)}; expected a number from 0")
        if self.dropout_rate >= 1 or self.momentum >= 1 or not self.lr:
            raise InputRefused("expected a learning rate over 0, momentum and dropout rate under 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of ``to_dict``; what is unknown is left out. Raises InputRefused for ill-typed entries."""
        known = {field.name: type(field.default) for field in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        if wrong := [name for name, value in given.items() if type(value) is not known[name]]:
            raise InputRefused(f"recipe: {wrong[0]} is {values[wrong[0]]!r}; expected {known[wrong[0]].__name__}")
        return cls(**given)

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
    reduction: float = 0.5,
) -> Architecture:  # fmt: skip
    """The Architecture that the reference's options describe; ``reduction`` is the share of channels that a DenseNet's transition keeps,
    rounded up to a multiple of ``group_1x1`` (reference: models/densenet.py, add_block).

    ``stem_stride`` None is 1 for images up to 64 pixels, else 2. Raises InputRefused for another model, and for numbers that don't fit.
    """
    if model not in MODELS:
        raise InputRefused(f"no model is called {model!r}; expected one of {', '.join(MODELS)}")
    kind = MODELS[model]
    if not 0 < reduction <= 1:
        raise InputRefused(f"reduction is {reduction}; expected more than 0 and at most 1")
    widths: list[int] = []
    if kind != "condensenet" and len(stages) == len(growth):
        channels = 2 * growth[0]
        for count, rate in list(zip(stages, growth, strict=True))[:-1]:
            wanted = math.ceil((channels + count * rate) * reduction)
            channels = -(-wanted // group_1x1) * group_1x1
            widths.append(channels)
    return Architecture(
        stages, growth, kind, bottleneck, group_1x1, group_3x3, condense_factor if kind != "densenet" else 1, classes,
        stem_stride or (1 if max(input_size) <= 64 else 2), input_size, classifier_keep=1.0, transition_channels=tuple(widths),
    )  # fmt: skip

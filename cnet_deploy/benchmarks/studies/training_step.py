"""A training step of this package and of the reference's layers, in one process and in turns; and the time that dropping takes.

``python -m cnet_deploy.benchmarks.studies.training_step RESULTS.json REFERENCE``, where REFERENCE is a checkout of
github.com/ShichenLiu/CondenseNet. Its ``layers.py`` and ``models`` are run unchanged. Both sides start with the same weights and get the
same batch. The limits: our step is not slower, and dropping takes milliseconds on CondenseNet-74.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import check_output, write_text
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build
from cnet_deploy.training.condensation import Condensation, initialise
from cnet_deploy.training.processes import Peers
from cnet_deploy.training.recipe import Recipe
from cnet_deploy.training.trainer import Trainer, tally

FORMAT_VERSION = 1
EXAMPLE = Architecture((4, 4, 4), (8, 16, 32), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=1.0)  # of examples/
LARGE = replace(NAMED["condensenet-74-g4"], classifier_keep=1.0)
LASSO = 1e-5
CASES = (
    ("the example, batch 64, bf16, channels last", EXAMPLE, Recipe(batch_size=64, group_lasso_lambda=LASSO, precision="bf16"), 5, 31),
    ("the example, batch 64, fp32, channels last", EXAMPLE, Recipe(batch_size=64, group_lasso_lambda=LASSO), 4, 21),
    ("the example, batch 64, fp32, channels first", EXAMPLE, Recipe(batch_size=64, group_lasso_lambda=LASSO, channels_last=False), 2, 11),
    ("CondenseNet-74, batch 16, bf16, channels last", LARGE, Recipe(batch_size=16, group_lasso_lambda=LASSO, precision="bf16"), 1, 21),
    ("CondenseNet-74, batch 16, fp32, channels last", LARGE, Recipe(batch_size=16, group_lasso_lambda=LASSO), 1, 15),
)
Step = Callable[[], object]


@contextmanager
def reference_models(folder: Path) -> Iterator[Any]:
    """The reference's modules ``models`` and ``layers``. Raises InputRefused if they are not in the folder."""
    if not (folder / "layers.py").is_file() or not (folder / "models" / "condensenet.py").is_file():
        raise InputRefused(f"{folder}: has no layers.py and models/condensenet.py; expected a checkout of ShichenLiu/CondenseNet")
    sys.path.insert(0, str(folder))
    try:
        yield SimpleNamespace(models=importlib.import_module("models"), layers=importlib.import_module("layers"))
    finally:
        sys.path.remove(str(folder))


def reference_step(reference: Any, model: nn.Module, recipe: Recipe, images: Callable[[], Tensor], labels: Tensor) -> Step:
    """A step as in the reference's main.py, with autocast if the recipe has it: progress, lasso by the layers, SGD, errors.

    ``images`` prepares a batch, and errors are counted, as in our step; only the layers, the lasso and the update differ.
    """
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True)
    learned = [module for module in model.modules() if isinstance(module, reference.layers.LearnedGroupConv)]
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = model(images(), 1e-6)
            loss = cross_entropy(logits.float(), labels)
        lasso = sum(module.lasso_loss for module in learned)
        optimizer.zero_grad()
        (loss + recipe.group_lasso_lambda * lasso).backward()
        optimizer.step()
        tally(logits.detach(), labels, loss.detach())

    return step


def in_turns(ours: Step, theirs: Step, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step of each side, round by round, and the median of the rounds' ratios."""
    times: dict[str, list[float]] = {"ours": [], "original": []}
    for number in range(rounds + 1):
        sides = [("ours", ours), ("original", theirs)]
        for name, step in sides if number % 2 else reversed(sides):
            start = time.perf_counter()
            for _ in range(count):
                step()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - start) / count)
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["original"], strict=True))
    return {"ours_seconds": times["ours"], "original_seconds": times["original"], "ratio": ratio}


def compare(reference: Any, arch: Architecture, recipe: Recipe, count: int, rounds: int) -> dict[str, Any]:
    """Time both sides with the same weights on the same batch of noise."""
    options = {
        "stages": list(arch.stages), "growth": list(arch.growth), "bottleneck": arch.bottleneck, "group_1x1": arch.group_1x1,
        "group_3x3": arch.group_3x3, "condense_factor": arch.condense_factor, "dropout_rate": 0.0, "num_classes": arch.classes,
        "data": "cifar10" if arch.stem_stride == 1 else "imagenet",
    }  # fmt: skip
    torch.manual_seed(0)
    theirs = reference.models.condensenet(SimpleNamespace(**options))
    model = build(arch, "training")
    model.load_state_dict(theirs.state_dict())
    trainer = Trainer(model, recipe, Peers(torch.device("cpu")), Preprocessing.of(arch.input_size, arch.classes))
    model.train()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (recipe.batch_size, 3, *arch.input_size), np.uint8)
    labels = random.integers(0, arch.classes, recipe.batch_size)
    theirs.to(memory_format=trainer.format)
    step = reference_step(reference, theirs, recipe, lambda: trainer.normalised(pixels), torch.from_numpy(labels))
    return in_turns(lambda: trainer.step(pixels, labels), step, count, rounds)


def dropping(arch: Architecture, rounds: int = 21) -> list[float]:
    """Seconds that each stage's dropping takes on a new network, over all layers."""
    seconds = []
    for _ in range(rounds):
        model = build(arch, "training")
        initialise(model)
        condensation = Condensation(model)
        for stage in range(1, arch.condense_factor):
            start = time.perf_counter()
            condensation.reach(stage)
            seconds.append(time.perf_counter() - start)
    return seconds


def main(output: Path, folder: Path, notify: Callable[[str], None] = print) -> None:
    """Measure all cases, then dropping."""
    check_output(output)
    results = []
    with reference_models(folder) as reference:
        for name, arch, recipe, count, rounds in CASES:
            times = compare(reference, arch, recipe, count, rounds)
            results.append({"case": name, "recipe": recipe.to_dict(), **times})
            notify(f"{name}: {statistics.median(times['ours_seconds']) * 1e3:.1f} ms a step, {times['ratio']:.3f} of the reference's")
    drops = {name: dropping(NAMED[name]) for name in ("condensenet-74-g4", "condensenet-74-g8")}
    for name, seconds in drops.items():
        notify(f"{name}: a stage's dropping takes {statistics.median(seconds) * 1e3:.1f} ms, {max(seconds) * 1e3:.1f} at most")
    report = {"cnet_deploy_training": FORMAT_VERSION, "environment": environment(), "steps": results, "dropping_seconds": drops}
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.training_step RESULTS.json REFERENCE")

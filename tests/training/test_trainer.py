"""A step is what automatic differentiation and the recipe say, whatever it is dressed in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cnet_deploy.errors import CheckFailed
from cnet_deploy.images.datasets import ArrayDataset, open_dataset
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.build import build
from cnet_deploy.models.layers import LearnedGroupConv
from cnet_deploy.training.condensation import initialise
from cnet_deploy.training.processes import Peers
from cnet_deploy.training.recipe import Recipe
from cnet_deploy.training.samples import Samples
from cnet_deploy.training.trainer import Trainer
from tests.builders import TINY, TINY_LGC
from tests.cases import exhaustive, long

CPU = Peers(torch.device("cpu"))
BATCH = (np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), np.uint8), np.random.default_rng(1).integers(0, 10, 16))


def trainer(arch: Any = TINY, **recipe: Any) -> Trainer:
    torch.manual_seed(0)
    model = build(arch, "training")
    initialise(model)
    return Trainer(model, Recipe(**{"lr": 0.05, **recipe}), CPU, Preprocessing.of(arch.input_size, arch.classes))


def quietly(*_: Any) -> None:
    """Told, and says nothing."""


def test_a_step_is_the_plain_one() -> None:
    """Beside a loop as torch's manual has it: autograd of cross entropy plus the lasso as the paper writes it."""
    found = trainer(group_lasso_lambda=1e-2, channels_last=False)
    torch.manual_seed(0)
    plain = build(TINY, "training")
    initialise(plain)
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    images, labels = torch.from_numpy(Preprocessing.of(TINY.input_size, TINY.classes).apply(BATCH[0])), torch.from_numpy(BATCH[1])
    found.model.train()
    for _ in range(3):
        found.step(*BATCH)
        loss = torch.nn.functional.cross_entropy(plain(images), labels)
        for module in plain.modules():
            if isinstance(module, LearnedGroupConv):
                weight = (module.conv.weight * module._mask).view(-1, 4, module.conv.in_channels)
                loss = loss + 1e-2 * weight.square().sum(0).clamp(min=1e-6).sqrt().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, ours), theirs in zip(found.model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=2e-5), name


def test_images_are_prepared_as_the_artifacts_do() -> None:
    found = trainer()
    expected = Preprocessing.of(TINY.input_size, TINY.classes).apply(BATCH[0])
    assert np.allclose(found.normalised(BATCH[0]).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"channels_last": False}, {"precision": "bf16", "channels_last": False}], ids=str
)
def test_formats_and_precisions_compute_the_same_but_for_rounding(options: dict[str, Any]) -> None:
    plain, dressed = trainer(), trainer(**options)
    for one in (plain, dressed):
        one.model.train()
    ours, theirs = (float(one.step(*BATCH)[0]) for one in (plain, dressed))
    assert ours == pytest.approx(theirs, rel=2e-2 if "precision" in options else 1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in dressed.model.parameters())


@exhaustive("tests/sessions/test_torch.py::test_a_compiled_module_computes_the_same")
def test_a_compiled_step_computes_the_same() -> None:
    plain, compiled = trainer(), trainer(compile=True)
    for one in (plain, compiled):
        one.model.train()
    for _ in range(2):
        assert float(plain.step(*BATCH)[0]) == pytest.approx(float(compiled.step(*BATCH)[0]), rel=1e-4)
    for one in (plain, compiled):
        one.condensation.reach(2)
    assert float(plain.step(*BATCH)[0]) == pytest.approx(float(compiled.step(*BATCH)[0]), rel=1e-3)


def test_dropout_is_where_the_reference_has_it() -> None:
    model = trainer(TINY_LGC, dropout_rate=0.3).model
    rates = {name: module.dropout for name, module in model.named_modules() if isinstance(module, LearnedGroupConv)}
    assert {rate for name, rate in rates.items() if name.endswith("conv_1")} == {0.3}
    assert {rate for name, rate in rates.items() if "transition" in name} == {0.0}
    layer = LearnedGroupConv(64, 8)
    layer.dropout = 0.5
    x = torch.randn(2, 64, 2, 2)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_scores_count_every_image_once(images_path: Any) -> None:
    found, dataset = trainer(batch_size=64), open_dataset(images_path)
    score = found.validate(dataset)
    logits = []
    with torch.inference_mode():
        assert isinstance(dataset, ArrayDataset)
        for start in range(0, 500, 100):
            logits.append(found.model.eval()(torch.from_numpy(found.preprocessing.apply(dataset.pixels[start : start + 100]))))
    order = torch.cat(logits).argsort(dim=1, descending=True).numpy()
    assert score.images == 500
    assert score.top1_error == pytest.approx(100 * (order[:, 0] != dataset.labels).mean())
    assert score.top5_error == pytest.approx(100 * (order[:, :5] != dataset.labels[:, None]).all(1).mean())
    assert score.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(torch.cat(logits), torch.from_numpy(dataset.labels))), rel=1e-4
    )


@long
def test_training_learns_and_stages_come_when_they_should(images_path: Any) -> None:
    dataset = open_dataset(images_path)
    found = trainer(batch_size=50, epochs=4, lr=0.1)
    samples = Samples(dataset, found.preprocessing, 50, seed=0)
    stages: list[tuple[int, int, int]] = []
    scores = []
    for epoch in range(4):
        scores.append(
            found.epoch(epoch, samples, on_step=quietly, on_stage=lambda step, state, e=epoch: stages.append((e, step, state.stage)))
        )
    assert stages == [(0, 7, 1), (1, 4, 2), (2, 0, 3)]  # after 40 / 6, 40 / 3 and 40 / 2 steps
    assert scores[-1].loss < scores[0].loss - 0.2 and scores[-1].images == 500


def test_a_loss_that_is_not_finite_ends_the_run(images_path: Any) -> None:
    found = trainer(lr=1e30)
    samples = Samples(open_dataset(images_path), found.preprocessing, 50, seed=0)
    with pytest.raises(CheckFailed, match="no longer finite in epoch 0; lower --lr"):
        found.epoch(0, samples, on_step=quietly, on_stage=quietly)

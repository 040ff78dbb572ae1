"""One epoch of training and one pass over the test images, in one process or several."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.images.batches import batches
from cnet_deploy.images.datasets import Dataset, Labels, Pixels
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.layers import LearnedGroupConv
from cnet_deploy.training.condensation import Condensation, Condensed
from cnet_deploy.training.processes import Peers
from cnet_deploy.training.recipe import Recipe, stage_at
from cnet_deploy.training.samples import Samples


@dataclass(frozen=True)
class Score:
    """Mean cross entropy, and top-1 and top-5 error in percent."""

    loss: float
    top1_error: float
    top5_error: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


class Trainer:
    """A model with its optimiser on its device. ``model`` is the plain module, without DistributedDataParallel and torch.compile."""

    def __init__(self, model: DenselyConnected, recipe: Recipe, peers: Peers, preprocessing: Preprocessing) -> None:
        self.recipe, self.peers, self.preprocessing = recipe, peers, preprocessing
        torch.backends.cudnn.benchmark = peers.device.type == "cuda"
        self.format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model: DenselyConnected = model.to(device=peers.device, memory_format=self.format)  # type: ignore[call-overload]
        for parameter in self.model.parameters():
            if parameter.shape[2:] == (1, 1):  # both formats are the same here; use the strides of the gradient
                parameter.data = parameter.data.flatten().view(parameter.shape)
        # The same average, but faster: the gradient of adaptive pooling is an expanded view, which slows the batch norm before it.
        self.model.features.pool_last = nn.AvgPool2d(model.architecture.pool_window)
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True  # nothing else reads its input
            if isinstance(module, LearnedGroupConv) and name.endswith("conv_1"):
                module.dropout = recipe.dropout_rate
        self.condensation = Condensation(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0,
            fused=True,
        )  # fmt: skip
        wrapped = peers.wrap(self.model)
        self.running: Callable[[Tensor], Tensor] = torch.compile(wrapped) if recipe.compile else wrapped
        self._mean, self._std = (
            torch.tensor(values, device=peers.device).mul(255).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )

    def epoch(
        self, number: int, samples: Samples, *, on_step: Callable[[int, float], None], on_stage: Callable[[int, Condensed], None]
    ) -> Score:
        """Train on every image once. ``on_step`` gets the step and the learning rate; ``on_stage`` gets the step and the progress of
        condensation whenever inputs were dropped.

        Raises CheckFailed if the loss is no longer finite.
        """
        torch.manual_seed(_seed(self.recipe.seed, number, self.peers.rank))  # for dropout, so that a resumed epoch is the same
        self.condensation.refresh()
        self.model.train()
        sums = torch.zeros(4, dtype=torch.float64, device=self.peers.device)
        total = self.recipe.epochs * samples.steps
        for step, (pixels, labels) in enumerate(samples.epoch(number)):
            done = number * samples.steps + step
            if self._condense(stage_at(done, total, self.model.architecture.condense_factor)):
                on_stage(step, self.condensation.progress)
            rate = self.rate(number, step, samples.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            sums += self.step(pixels, labels)
            on_step(step, rate)
            if step % 100 == 99:
                _require_finite(sums, number)
        score = self._score(sums)
        _require_finite(torch.tensor(score.loss), number)
        return score

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate of step ``step`` of ``steps`` in an epoch."""
        return self.recipe.learning_rate(epoch, step, steps, max(self.preprocessing.crop) <= 64)

    def step(self, pixels: Pixels, labels: Labels) -> Tensor:
        """One step of the optimiser. Returns the batch's sums as ``tally`` does."""
        truth = torch.from_numpy(labels).to(self.peers.device, non_blocking=True)
        with self._autocast():
            logits = self.running(self.normalised(pixels))
            loss = cross_entropy(logits.float(), truth, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.group_lasso_lambda and not self.condensation.finished:
            self.condensation.add_lasso_gradient(self.recipe.group_lasso_lambda)
        self.optimizer.step()
        return tally(logits.detach(), truth, loss.detach())

    def validate(self, dataset: Dataset, model: nn.Module | None = None) -> Score:
        """Loss and errors on a dataset. Each image is counted once, also with several processes.

        ``model`` None is the model in training. Raises InputRefused for an image that can't be read.
        """
        if model is None:
            model = self.model
            self.peers.share(model.buffers())  # the leader's buffers are the ones in the checkpoint
        training = model.training
        model.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.peers.device)
        mine = np.arange(self.peers.rank, len(dataset), self.peers.processes)
        try:
            with torch.inference_mode(), self._autocast():
                for batch in batches(dataset, [self.preprocessing], mine.tolist(), min(self.recipe.batch_size, 256)):
                    if batch.refused:
                        raise InputRefused(batch.refused[0])
                    truth = torch.from_numpy(batch.labels).to(self.peers.device)
                    logits = model(self.normalised(batch.pixels[0])).float()
                    sums += tally(logits, truth, cross_entropy(logits, truth))
        finally:
            model.train(training)
        return self._score(sums)

    def normalised(self, pixels: Pixels) -> Tensor:
        """``Preprocessing.apply`` on the device."""
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.peers.device, non_blocking=True)
        return images.to(memory_format=self.format).float().sub_(self._mean).div_(self._std)

    def _condense(self, stage: int) -> bool:
        """Bring every layer to a stage. The leader's masks are copied to all processes, so that they are equal."""
        changed = self.condensation.reach(stage)
        if changed:
            self.peers.share(self.condensation.buffers())
        return changed

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.peers.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _score(self, sums: Tensor) -> Score:
        loss, first, five, images = self.peers.total(sums.clone()).tolist()
        return Score(loss / images, 100 * first / images, 100 * five / images, int(images))


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def tally(logits: Tensor, truth: Tensor, loss: Tensor) -> Tensor:
    """Sums over a batch [4]: loss, top-1 errors, top-5 errors, images. Logits that are not all finite are no answer: both are errors."""
    best = logits.float().topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == truth[:, None]) & torch.isfinite(logits).all(dim=1, keepdim=True)
    count = float(len(truth))
    wrong = count - torch.stack([hits[:, :1].sum(), hits.sum()])
    return torch.cat([(loss * count).view(1), wrong, loss.new_tensor([count])]).double()


def _require_finite(values: Tensor, epoch: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise CheckFailed(f"the loss is no longer finite in epoch {epoch}; lower --lr, and --resume from the last checkpoint")


def _seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))

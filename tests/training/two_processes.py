"""Run by torchrun: train, and leave what each process has at the end for the test to compare."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from cnet_deploy.images.datasets import open_dataset
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.build import build
from cnet_deploy.training.condensation import initialise
from cnet_deploy.training.processes import gathered
from cnet_deploy.training.recipe import Recipe
from cnet_deploy.training.samples import Samples
from cnet_deploy.training.trainer import Trainer
from tests.builders import TINY


def main(data: Path, out: Path) -> int:
    """Train, evaluate and write down what came of it. Returns the threads of this process while it talked with the others."""
    torch.set_num_threads(1)
    with gathered("cpu") as peers:
        recipe = Recipe(epochs=3, batch_size=32, group_lasso_lambda=1e-3, precision="bf16")
        torch.manual_seed(peers.rank)  # other weights on each: the leader's must win
        model = build(TINY, "training")
        initialise(model)
        trainer = Trainer(model, recipe, peers, Preprocessing.of(TINY.input_size, TINY.classes, "fashion-mnist"))
        samples = Samples(open_dataset(data, "train"), trainer.preprocessing, 32, 0, peers.rank, peers.processes)
        stages: list[int] = []
        for epoch in range(3):
            trained = trainer.epoch(epoch, samples, on_step=lambda *_: None, on_stage=lambda step, state: stages.append(state.stage))
        score = trainer.validate(open_dataset(data))
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        figures = np.asarray([trained.images, trained.loss, score.images, score.loss, score.top1_error, *stages])
        np.savez(out / f"rank{peers.rank}.npz", figures=figures, **state)
        return _threads()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


if __name__ == "__main__":
    during = main(Path(sys.argv[1]), Path(sys.argv[2]))
    # The group that moved Python's tensors has ended, or its threads may meet the interpreter's end and abort the process.
    assert _threads() < during, "no thread has ended with the group"

"""A complete training run: data, model, resuming, epochs, checkpoints, journal, and the converted model's errors at the end."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnet_deploy.checkpoints.recognise import check_tensors
from cnet_deploy.errors import CheckFailed, InputRefused, Interrupted, PruningUnfinished, naming, printable
from cnet_deploy.files.strict_json import convert as converted_to
from cnet_deploy.files.strict_json import shown
from cnet_deploy.images.datasets import Dataset, open_dataset
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import convert
from cnet_deploy.svg import require_matplotlib
from cnet_deploy.training.checkpoints import Checkpoints, Recorded, State, require_finite
from cnet_deploy.training.condensation import Condensed, initialise
from cnet_deploy.training.journal import Journal
from cnet_deploy.training.processes import Peers, gathered
from cnet_deploy.training.recipe import Recipe, architecture_of
from cnet_deploy.training.samples import Samples
from cnet_deploy.training.trainer import Score, Trainer, timed
from cnet_deploy.version import __version__

Notify = Callable[[str], None]  # gets lines of text
Progress = Callable[[str, float], None]  # gets a line of text and the share that is done (0 to 1)


_PARTS = {"train": "training", "val": "test"}


def _ignore(*_: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Trained:
    """The result of a run: the last and the best checkpoint, the errors of the last epoch, and those of the converted model (None if it
    can't be converted)."""

    checkpoint: Path
    best: Path
    score: Score
    best_prec1: float
    converted: Score | None

    def lines(self) -> list[str]:
        """Lines of text."""
        text = f"{self.checkpoint}: top-1 error {self.score.top1_error:.2f} % on {self.score.images:,} test images"
        text += f", converted {self.converted.top1_error:.2f} %" if self.converted else ""
        return [text, f"{self.best}: the best so far, {100 - self.best_prec1:.2f} %"]


def train(
    data: Path | str,
    savedir: Path | str,
    recipe: Recipe,
    *,
    model: str = "condensenet",
    resume: bool = False,
    no_save_model: bool = False,
    workers: int | None = None,
    device: str | None = None,
    print_freq: int = 10,
    notify: Notify = _ignore,
    progress: Progress = _ignore,
    input_size: tuple[int, int] | None = None,
    **shape: Any,
) -> Trained | None:
    """Train a model on the dataset in ``data`` by a recipe; checkpoints, log.jsonl and curves.svg are written to ``savedir``.

    ``shape``: stages, growth and the other arguments of ``architecture_of``. ``resume``: continue from the last valid checkpoint in
    ``savedir``, if there is one. ``print_freq``: steps between calls of ``progress``. Under torchrun all processes train together, and all
    but the first return None. Raises InputRefused for data or checkpoints that can't be used, CheckFailed if the loss is no longer finite,
    Unavailable for a missing device, and before anything else if matplotlib is missing, since a run draws its curves.
    """
    require_matplotlib()
    data, savedir = Path(data), Path(savedir)
    training, test = (open_dataset(data, split) for split in ("train", "val"))
    if training.class_names != test.class_names:
        odd = sorted(set(training.class_names) ^ set(test.class_names))
        raise InputRefused(f"{data}: train and val have other classes: {', '.join(odd[:5])}; expected the same folders in both")
    arch = architecture_of(model, classes=training.classes, input_size=input_size or training.input_size, **shape)
    if not arch.learned and (recipe.dropout_rate or recipe.group_lasso_lambda):
        raise InputRefused("a plain DenseNet has no learned groups; expected no dropout rate and no group lasso")
    with gathered(device) as peers:
        notify, progress = (notify, progress) if peers.leads else (_ignore, _ignore)
        run = _Run(arch, recipe, peers, training, test, Checkpoints(savedir, no_save_model), savedir, model, workers, notify, progress)
        try:
            return run.go(resume, print_freq)
        finally:
            run.journal.close()


class _Run:
    def __init__(
        self, arch: Architecture, recipe: Recipe, peers: Peers, training: Dataset, test: Dataset, checkpoints: Checkpoints, savedir: Path,
        name: str, workers: int | None, notify: Notify, progress: Progress,
    ) -> None:  # fmt: skip
        self.recipe, self.peers, self.training, self.test, self.checkpoints = recipe, peers, training, test, checkpoints
        self.name, self.notify, self.progress = name, notify, progress
        torch.manual_seed(recipe.seed)
        model = build(arch, "training" if arch.learned else "group-conv")
        initialise(model)
        # Whatever it is, it is what the network is trained with: nothing about it is a guess.
        model.preprocessing = replace(Preprocessing.of(arch.input_size, arch.classes, training.statistics), guessed=())
        self.samples = Samples(
            training, model.preprocessing, recipe.batch_size, recipe.seed, peers.rank, peers.processes, workers
        )  # fmt: skip
        self.trainer = Trainer(model, recipe, peers, model.preprocessing)
        self.journal = Journal(savedir, recipe.epochs)
        self.conditions: dict[str, Any] = {
            "cnet-deploy": __version__,
            "torch": torch.__version__,
            "processor": platform.machine(),
            "device": torch.cuda.get_device_name(peers.device) if peers.device.type == "cuda" else "cpu",
            "processes": peers.processes,
            "threads": torch.get_num_threads(),
            "images": len(training),
        }
        parts = {"train": training, "val": test}
        self.data = {part: {"images": len(images), "labels_sha256": images.labels_sha256()} for part, images in parts.items()}

    @property
    def model(self) -> DenselyConnected:
        model: DenselyConnected = self.trainer.model
        return model

    def go(self, resume: bool, print_freq: int) -> Trained | None:
        """Train the remaining epochs."""
        best, first = 0.0, 0
        if self.peers.leads:
            self.checkpoints.prepare()
            self.journal.claim()
        if resume:
            best, first = self._resume()
        elif self.peers.from_leader(self.checkpoints.numbered() if self.peers.leads else []):
            raise InputRefused(
                f"{self.checkpoints.folder}: has checkpoints of another run; give --resume to continue it, or another --savedir"
            )
        if self.peers.leads:
            self.journal.begin(first)
            self.journal.write(
                "start", tool=f"cnet-deploy {__version__}", model=self.name, architecture=self.model.architecture.to_dict(),
                recipe=self.recipe.to_dict(), dataset=self.training.name, test_images=len(self.test), first_epoch=first,
                class_names=list(self.training.class_names), data=self.data, **self.conditions,
            )  # fmt: skip
        self.notify(self.model.architecture.summary())
        score, path = None, None
        try:
            for epoch in range(first, self.recipe.epochs):
                score, best, path = self._epoch(epoch, best, print_freq)
        except KeyboardInterrupt:
            written = self.checkpoints.numbered()
            kept = f"--resume continues from {written[0]}" if written else "no epoch was finished"
            raise Interrupted(f"interrupted; {kept}") from None
        if score is None:
            self.notify(f"nothing is left to do: all {self.recipe.epochs} epochs are done")
            score = self.trainer.validate(self.test)
            path = self.checkpoints.numbered()[0]
        converted = self._converted()
        if not self.peers.leads:
            return None
        assert path is not None
        self.journal.write("end", best_top1_error=100 - best, converted=converted and converted.to_dict())
        return Trained(path, self.checkpoints.folder / "model_best.pth.tar", score, best, converted)

    def _epoch(self, epoch: int, best: float, print_freq: int) -> tuple[Score, float, Path | None]:
        recipe, steps = self.recipe, self.samples.steps

        def on_step(step: int, rate: float) -> None:
            if step % print_freq == 0 or step == steps - 1:
                self.progress(f"epoch {epoch + 1}/{recipe.epochs}, lr {rate:.4f}", (epoch + (step + 1) / steps) / recipe.epochs)

        def on_stage(step: int, condensed: Condensed) -> None:
            self.notify(f"epoch {epoch}, step {step}: {condensed.summary()}")
            if self.peers.leads:
                self.journal.write("stage", epoch=epoch, step=step, stage=condensed.stage, live=condensed.live, total=condensed.total)

        with timed() as clock:
            trained = self.trainer.epoch(epoch, self.samples, on_step=on_step, on_stage=on_stage)
            seconds = clock()
        score = self.trainer.validate(self.test)
        require_finite(self.model, self.trainer.optimizer, epoch)  # on every process, so that all end
        if not math.isfinite(score.loss):
            raise CheckFailed(
                f"the loss on the test images is no longer finite after epoch {epoch}, which was not saved; lower --lr, and --resume from "
                "the last checkpoint"
            )
        top1 = 100 - score.top1_error
        is_best, best = top1 > best, max(best, top1)
        path = None
        if self.peers.leads:
            names = list(self.training.class_names)
            about = {"recipe": recipe.to_dict(), "conditions": self.conditions, "class_names": names, "data": self.data}
            path = self.checkpoints.save(self.model, self.trainer.optimizer, epoch, best, is_best, about)
            condensed = self.trainer.condensation.progress
            self.journal.write(
                "epoch", epoch=epoch, lr=self.trainer.rate(epoch, 0, steps), train=trained.to_dict(), test=score.to_dict(),
                seconds=round(seconds, 3), images_per_second=round(trained.images / seconds, 1), stage=condensed.stage,
                live=condensed.live, total=condensed.total, checkpoint=path.name,
            )  # fmt: skip
            self.journal.draw()
        self.notify(
            f"epoch {epoch}: loss {trained.loss:.4f}, top-1 error {trained.top1_error:.2f} % trained, {score.top1_error:.2f} % tested "
            f"(top-5 {score.top5_error:.2f} %), {trained.images / seconds:,.0f} images/s"
        )
        return score, best, path

    def _resume(self) -> tuple[float, int]:
        """Load the leader's last valid checkpoint. Returns the best accuracy so far and the first epoch to train."""
        state: State | None = self.peers.from_leader(self.checkpoints.latest(self.name, self.notify) if self.peers.leads else None)
        if state is None:
            self.notify(f"{self.checkpoints.folder}: has no checkpoint; starting anew")
            return 0.0, 0
        with naming(state.path):
            arch = self.model.architecture
            try:
                check_tensors(state.tensors, arch, self.model.form)
            except InputRefused as error:
                raise InputRefused(f"is of another network; give the options it was trained with, or another --savedir ({error})") from None
            shapes = {name: value.shape for name, value in self.model.state_dict().items()}
            self.model.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.tensors.items()}, strict=False)
            _load_momenta(self.trainer.optimizer, state.optimizer)
            self._require_same_data(state.training)
        self.notify(f"{state.path}: going on after epoch {state.epoch}")
        if changes := _changes(state.training, self.recipe, self.conditions):
            self.notify(f"the result will differ from that of an uninterrupted run: {'; '.join(changes)}")
        return state.best_prec1, state.epoch + 1

    def _require_same_data(self, training: Mapping[str, Any]) -> None:
        """Raise InputRefused where the classes or the labels are not those that a checkpoint (``training``: its metadata) was trained on.

        Another number of images is no reason: it is among the changes that are reported.
        """
        before = converted_to(training, Recorded)
        remedy = "undo that, or give another --savedir to train anew"
        now = self.training.class_names
        if self.training.named and before.class_names not in ((), tuple(map(str, range(len(now)))), now):
            odd = [f"{old} is {new} now" for old, new in zip(before.class_names, now, strict=False) if old != new]
            raise InputRefused(f"was trained on other classes: {', '.join(odd[:5])}; {remedy}")
        for part, own in self.data.items():
            old = before.data.get(part)
            if old is not None and old.images == own["images"] and old.labels_sha256 != own["labels_sha256"]:
                raise InputRefused(
                    f"was trained on the same number of images, but labels or names of the {_PARTS[part]} images have changed (were "
                    f"folders of classes swapped, or files renamed?); {remedy}"
                )

    def _converted(self) -> Score | None:
        """The errors of the group-conv form; None if the model can't be converted (reference: main.py, the end of main)."""
        if not self.model.architecture.learned:
            return None
        try:
            converted = convert(copy.deepcopy(self.model).cpu())
        except PruningUnfinished:
            return None
        score = self.trainer.validate(self.test, converted.to(self.peers.device))
        self.notify(f"converted: top-1 error {score.top1_error:.2f} % (top-5 {score.top5_error:.2f} %)")
        return score


def _load_momenta(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take the momenta alone from an optimiser's saved state: everything else is the recipe's.

    Raises InputRefused where they are not those of this model's weights.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = "the optimiser's state is of another model"
    groups, entries = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        raise InputRefused(f"{expected}: it has no groups of parameters; expected optimizer.state_dict()")
    names = [name for group in groups for name in group["params"]]  # numbers: of old torch, any
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise InputRefused(f"{expected}: it has no entries; expected optimizer.state_dict()")
    if not all(isinstance(name, int) for name in names) or len(set(names)) != len(parameters) or len(names) != len(parameters):
        raise InputRefused(f"{expected}: it is of {len(names)} weights; expected {len(parameters)}")
    momenta = {name: entry["momentum_buffer"] for name, entry in entries.items() if entry.get("momentum_buffer") is not None}
    with_momentum = not all(isinstance(value := group.get("momentum"), (int, float)) and value == 0 for group in groups)
    if set(momenta) != (set(names) if momenta or with_momentum else set()):
        raise InputRefused(f"{expected}: it has momenta for {len(set(names) & set(momenta))} of {len(names)} weights; expected one each")
    for number, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        momentum = momenta.get(name, parameter)
        if not isinstance(momentum, torch.Tensor) or momentum.dtype != parameter.dtype or momentum.shape != parameter.shape:
            what = f"{_type(momentum)} {list(momentum.shape)}" if isinstance(momentum, torch.Tensor) else "no tensor"
            raise InputRefused(f"{expected}: momentum {number} is {what}; expected {_type(parameter)} {list(parameter.shape)}")
    loaded = {number: {"momentum_buffer": momenta[name]} for number, name in enumerate(names) if name in momenta}
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


_BEFORE = {"label_smoothing": 0.0}  # what runs did that recorded no such entry yet


def _changes(training: Mapping[str, Any], recipe: Recipe, conditions: Mapping[str, Any]) -> list[str]:
    """Differences to the run that wrote a checkpoint (``training``: its metadata, missing in the reference's checkpoints)."""
    if "recipe" not in training or "conditions" not in training:
        return ["the checkpoint does not record its recipe, and another program chose the order of the images"]
    before = {**_BEFORE, **training["recipe"], **training["conditions"]}
    after = {**recipe.to_dict(), **conditions}
    changes = [
        f"{name} was {_word(before[name]) if name in before else 'not recorded'} and is {_word(value)}"
        for name, value in after.items()
        if name not in before or before[name] != value
    ]
    return changes + ([] if conditions["device"] == "cpu" else ["a GPU's kernels do not always add in the same order"])


def _word(value: Any) -> str:
    """A value of a recipe or of conditions, which a file may state as anything, on one line."""
    return printable(value, 60) if isinstance(value, str) else shown(value)

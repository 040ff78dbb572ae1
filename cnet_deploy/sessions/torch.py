"""Models in torch itself: checkpoints in either form, and the paper's networks by name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cnet_deploy.checkpoint import load
from cnet_deploy.errors import Unavailable
from cnet_deploy.models import DenselyConnected, build_named
from cnet_deploy.models.baselines import CLASSES, INPUT_SIZE
from cnet_deploy.sessions.base import Binding, Floats, Session

_OWN_CHOICE = torch.get_num_threads()


class TorchSession(Session):
    """A module run eagerly, or ``compiled`` and frozen (weights as constants), without gradients.

    ``threads`` is set for the whole process: torch has one pool.
    """

    backend = "torch"

    def __init__(
        self,
        model: nn.Module,
        input_size: tuple[int, int],
        classes: int,
        *,
        device: str = "cpu",
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        if device != "cpu":
            raise Unavailable(f"torch on {device!r} is not supported yet; expected device 'cpu'")
        self.model: nn.Module = _compiled(model.eval()) if compiled else model.eval()
        self.input_shape = (None, 3, *input_size)
        self.classes = classes
        self.threads = threads
        if isinstance(model, DenselyConnected):
            self.architecture, self.preprocessing, self.form = model.architecture, model.preprocessing, model.form

    def close(self) -> None:
        super().close()
        self.model = nn.Identity()

    def bind(self, batch: Floats) -> Binding:
        checked = self.check(batch)
        return _TorchBinding(self.model, checked, self.threads)


class _TorchBinding(Binding):
    def __init__(self, model: nn.Module, batch: Floats, threads: int | None) -> None:
        # torch can't know that it will not write to the batch, and warns of arrays that must not be written to.
        self._batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
        self._model, self._threads = model, threads or _OWN_CHOICE
        self._logits: torch.Tensor | None = None

    def enqueue(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            self._logits = self._model(self._batch)

    def result(self) -> Floats:
        if self._logits is None:
            raise RuntimeError("result() before enqueue()")
        logits: Floats = self._logits.numpy()
        return logits


def from_module(model: DenselyConnected, *, threads: int | None = None) -> TorchSession:
    """A session over a model of the family that is in memory."""
    return TorchSession(model, model.architecture.input_size, model.architecture.classes, threads=threads)


def _compiled(model: nn.Module) -> nn.Module:
    """The module through ``torch.compile``, with its weights frozen into the code."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    model.compile()
    return model


def open_named(name: str, *, threads: int | None, compiled: bool = False) -> TorchSession:
    """A session over a network of the paper, with random weights. Raises InputRefused for an unknown name."""
    network = build_named(name)
    if isinstance(network, DenselyConnected):
        arch = network.architecture
        return TorchSession(network, arch.input_size, arch.classes, threads=threads, compiled=compiled)
    return TorchSession(network, INPUT_SIZE, CLASSES, threads=threads, compiled=compiled)


def open_file(path: Path, *, device: str, threads: int | None, compiled: bool = False) -> Session:
    """A session over a checkpoint of the family, in the form in which it is stored."""
    model = load(path)
    arch = model.architecture
    return TorchSession(model, arch.input_size, arch.classes, device=device, threads=threads, compiled=compiled)

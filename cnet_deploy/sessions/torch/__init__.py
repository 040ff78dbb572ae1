"""Run models with torch: checkpoints in either form, and the paper's networks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnet_deploy.errors import naming
from cnet_deploy.sessions.base import LOADING_OPTIONS, Backend, Part, Probe, Session

if TYPE_CHECKING:
    from cnet_deploy.artifacts.pair import Pair
    from cnet_deploy.models.condensenet import DenselyConnected
    from cnet_deploy.sessions.torch.session import TorchSession

BACKEND = Backend(
    suffixes=(".safetensors", ".tar", ".pth", ".pt", ".ckpt", ".th", ".pkl", ".bin"),
    opens=("checkpoint",),
    packages=("torch",),
    remedy="pip install torch (pytorch.org/get-started)",
    parts={
        "compile": Part({"compiled": True}),
        "cudagraph": Part({"cudagraph": True}),
        "channels_last": Part({"channels_last": True}),
        "tf32": Part({"precision": "tf32"}, rounds_to_tf32=True),
        "fp16": Part({"precision": "fp16"}),
        "bf16": Part({"precision": "bf16"}),
    },
    table={"cpu": ("",), "cuda": ("", "compile", "cudagraph", "cudagraph.fp16")},
    opens_models=True,
    probes=(Probe("torch"), Probe("torch.compile", options={"compiled": True}), Probe("torch on cuda", "cuda")),
)


def from_module(model: DenselyConnected, *, threads: int | None = None) -> TorchSession:
    """A session on a model of the family in memory."""
    from cnet_deploy.sessions.torch.session import TorchSession

    return TorchSession(model, model.architecture.input_size, model.architecture.classes, threads=threads)


def open_named(name: str, *, threads: int | None, device: str = "cpu", **options: Any) -> TorchSession:
    """A session on a network of the paper with random weights. Raises InputRefused for an unknown name."""
    from cnet_deploy.models.architecture import CLASSES, INPUT_SIZE
    from cnet_deploy.models.build import build_named
    from cnet_deploy.models.condensenet import DenselyConnected
    from cnet_deploy.sessions.torch.session import TorchSession

    network = build_named(name)
    size, classes = INPUT_SIZE, CLASSES
    if isinstance(network, DenselyConnected):
        size, classes = network.architecture.input_size, network.architecture.classes
    return TorchSession(network, size, classes, device=device, threads=threads, **options)


def open_file(pair: Pair, *, device: str, threads: int | None, **options: Any) -> Session:
    """Open a session on a checkpoint, in the form in which it is stored; ``options`` are those of ``load`` and TorchSession."""
    from cnet_deploy.checkpoints.load import load
    from cnet_deploy.models.demands import require_runnable
    from cnet_deploy.sessions.torch.session import TorchSession

    model = load(pair.path, data=pair.data, **{name: options.pop(name) for name in LOADING_OPTIONS if name in options})
    arch = model.architecture
    with naming(pair.path):
        require_runnable(arch)
    return TorchSession(model, arch.input_size, arch.classes, device=device, threads=threads, **options)

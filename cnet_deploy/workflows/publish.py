"""Artifact -> model repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.artifacts.triton import Repository, write_repository
from cnet_deploy.errors import InputRefused, Unavailable, naming, printable
from cnet_deploy.exporters import module_of, target_of, targets
from cnet_deploy.exporters.base import Serving


def publish(
    folder: Path | str, artifact: Path | str, *, name: str | None = None, max_batch: int | None = None, backend: str | None = None,
    instances: int = 1, threads: int | None = None,
) -> Repository:  # fmt: skip
    """Put an artifact into a model repository of NVIDIA Triton Inference Server as the model's next version (see ``write_repository``).

    ``backend`` is the server's backend, where several run such artifacts (onnx: "onnxruntime", the default, or "openvino"). A native
    library gets a backend of its own beside it. Raises InputRefused for an artifact without a manifest, of a kind that Triton does not
    serve, or not by this backend, and Unavailable or InputRefused if this particular artifact can't be served.
    """
    manifest = read_manifest(artifact)
    if manifest is None:
        raise InputRefused(f"{artifact}: has no manifest beside it; expected the pair that `export` wrote")
    with naming(artifact):
        serving = serving_of(manifest.target, backend)
    module = module_of(manifest.target)
    try:
        getattr(module, "require_servable", lambda _: None)(manifest)
        beside: Mapping[str, bytes] = getattr(module, "serving_files", lambda _: {})(manifest)
    except (InputRefused, Unavailable) as error:
        raise type(error)(f"{artifact}: {error}") from None
    return write_repository(
        folder, artifact, serving, name=name, max_batch=max_batch, instances=instances, threads=threads, beside=beside
    )  # fmt: skip


def serving_of(target: str, backend: str | None = None) -> Serving:
    """How Triton runs a target's artifacts: by its ``backend``, None for the first. Raises InputRefused for a target that it does not
    serve, and for a backend that does not run it."""
    described = target_of(target)
    if not described.serving:
        served = " or ".join(f"--{name}" for name, other in targets().items() if other.serving)
        raise InputRefused(f"Triton serves no {described.title} artifacts; expected one of `export` with {served}")
    for serving in described.serving:
        if backend in (None, serving.backend):
            return serving
    known = " or ".join(serving.backend for serving in described.serving)
    raise InputRefused(f"Triton's backend {printable(backend, 60)} runs no {described.title} artifacts; expected {known}")

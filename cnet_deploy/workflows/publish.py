"""Artifact -> model repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.artifacts.triton import Repository, write_repository
from cnet_deploy.errors import InputRefused, Unavailable, naming
from cnet_deploy.exporters import module_of, target_of, targets
from cnet_deploy.exporters.base import Serving


def publish(
    folder: Path | str, artifact: Path | str, *, name: str | None = None, max_batch: int | None = None
) -> Repository:  # fmt: skip
    """Put an artifact into a model repository of NVIDIA Triton Inference Server as the model's next version (see ``write_repository``).

    Raises InputRefused for an artifact without a manifest or of a kind that Triton does not serve, and Unavailable or InputRefused if
    this particular artifact can't be served.
    """
    manifest = read_manifest(artifact)
    if manifest is None:
        raise InputRefused(f"{artifact}: has no manifest beside it; expected the pair that `export` wrote")
    with naming(artifact):
        serving = serving_of(manifest.target)
    try:
        getattr(module_of(manifest.target), "require_servable", lambda _: None)(manifest)
    except (InputRefused, Unavailable) as error:
        raise type(error)(f"{artifact}: {error}") from None
    return write_repository(folder, artifact, serving, name=name, max_batch=max_batch)


def serving_of(target: str) -> Serving:
    """How Triton runs a target's artifacts. Raises InputRefused for a target that it does not serve."""
    serving = target_of(target).serving
    if serving is None:
        served = " or ".join(f"--{name}" for name, described in targets().items() if described.serving)
        raise InputRefused(f"Triton serves no {target_of(target).title} artifacts; expected one of `export` with {served}")
    return serving

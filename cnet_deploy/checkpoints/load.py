"""Load a torch model from a checkpoint of the family."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from cnet_deploy.checkpoints.metadata import METADATA_KEY, OwnMetadata, class_names_of, preprocessing_of
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.recognise import architecture_of, infer_form
from cnet_deploy.errors import naming
from cnet_deploy.models.architecture import Architecture, FinalPool
from cnet_deploy.models.build import build
from cnet_deploy.models.condensenet import DenselyConnected, Source

log = logging.getLogger(__name__)


def load(
    path: Path | str,
    *,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
    weights: str | None = None,
    final_pool: FinalPool | None = None,
    hs_from: int | None = None,
    sha256: str | None = None,
    data: bytes | None = None,
    like: Architecture | None = None,
) -> DenselyConnected:
    """Load a model from a checkpoint of the family, in the form in which it is stored and in evaluation mode.

    ``groups``, ``condense_factor``, ``input_size`` (height, width), ``stem_stride``, ``final_pool`` and ``hs_from``: see
    ``infer_architecture``; ``weights`` (the key of a set of weights in the file), ``sha256`` and ``data``: see ``read_tensors``;
    ``like``: see ``architecture_of``.
    Raises InputRefused as both do; the message begins with the file's name.
    """
    read = read_tensors(path, sha256, data, weights=weights)
    with naming(path):
        form = infer_form(read.tensors)
        arch = architecture_of(
            read, groups=groups, condense_factor=condense_factor, input_size=input_size, stem_stride=stem_stride, final_pool=final_pool,
            hs_from=hs_from, like=like,
        )  # fmt: skip
        model = build(arch, form)
        own: OwnMetadata | None = read.metadata.get(METADATA_KEY)
        model.preprocessing = preprocessing_of(read, arch)
        model.class_names = class_names_of(read, arch.classes)
    for note in read.notes:
        log.warning("%s: %s", path, note)
    # Old files may lack the counters, or store them in another shape; everything else was checked name by name.
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value).reshape(shapes[name]) for name, value in read.tensors.items()}, strict=False)
    model.source = Source(read.digest, read.source, form)
    if own and own.source.sha256:
        model.source = Source(own.source.sha256, own.source.name, own.source.form)
    return model

"""Small whole files of every container, to begin with: ``python -m tests.fuzz.seeds FOLDER`` writes a folder for each target."""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from cnet_deploy.artifacts.manifest import Manifest
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.sweep.results import Report, Row
from cnet_deploy.benchmarks.tuning.choice import Choice
from cnet_deploy.checkpoints.dialects import ppim
from cnet_deploy.checkpoints.metadata import METADATA_KEY, own_metadata
from cnet_deploy.checkpoints.update_tables import one_hot
from cnet_deploy.files import digest
from cnet_deploy.files.strict_json import to_json
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build, build_random
from cnet_deploy.models.condensenet import initialise
from tests.benchmarks.helpers import on_cuda, report, result
from tests.builders import training_model
from tests.fuzz.targets import ARTIFACT, MACHINE, NETWORK

SMALL_V2 = Architecture.v2(
    (1, 1), (2, 2), groups=2, hard_swish_from=2, excitation_from=2, hidden_channels=3, bottleneck=2, classes=10, stem_stride=1,
    input_size=(8, 8),
)  # fmt: skip
SMALL = Architecture((1,), (2,), bottleneck=2, group_1x1=2, group_3x3=2, condense_factor=2, classes=10, stem_stride=1, input_size=(8, 8))


def write(folder: Path) -> None:
    """All of them."""
    for target, files in {
        "checkpoint": checkpoints(), "manifest": manifests(), "image": images(), "results": results(), "baseline": baselines(),
        "choice": choices(),
    }.items():  # fmt: skip
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(files):
            (folder / target / f"seed-{number:02d}").write_bytes(data)


def checkpoints() -> list[bytes]:
    trained = build(SMALL, "training")
    initialise(trained, 0)
    training = {name: value.clone() for name, value in trained.state_dict().items()}
    for conv in SMALL.pointwise_convs():
        rows, columns = torch.arange(conv.out_channels)[:, None], torch.arange(conv.in_channels)
        training[f"{conv.name}._mask"] = (rows % 2 == columns % 2).float()[:, :, None, None]
        training[f"{conv.name}._stage"], training[f"{conv.name}._count"] = torch.tensor([1.0]), torch.tensor([conv.in_channels / 2])
    converted = build_random(SMALL)
    whole = {
        "epoch": 3, "model": "condensenet", "best_prec1": 87.5, "state_dict": {f"module.{name}": value for name, value in training.items()},
        METADATA_KEY: own_metadata(trained), "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    odd: dict[str, Any] = {
        "half": torch.ones(2).half(), "brain": torch.ones(2, 2).bfloat16(), "view": torch.arange(12.0).view(3, 4)[1:, ::2],
        "truth": torch.tensor([True]), "whole": torch.arange(3), "new": torch.ones(2).to(torch.uint16),
        "negative": torch._neg_view(torch.ones(2)), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    half = {name: value.half() if value.is_floating_point() else value for name, value in training.items()}
    made = []
    for value in (whole, dict(converted.state_dict()), odd, half):
        for legacy in (True, False):
            for protocol in (2, 4) if value is odd else (2,):
                buffer = io.BytesIO()
                torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
                made.append(buffer.getvalue())
    made += others(whole, training)
    made += second_version()
    made.append(safetensors.torch.save(training, {METADATA_KEY: own_metadata(trained)}))
    made.append(safetensors.torch.save({name: value.contiguous() for name, value in converted.state_dict().items()}))
    return made


def second_version() -> list[bytes]:
    """CondenseNet V2: as trained, in a container of ours, as its authors' converter writes it, and as a file for Paddle."""
    trained, converted = training_model(SMALL_V2), build_random(SMALL_V2)
    made = [safetensors.torch.save(dict(converted.state_dict()), {METADATA_KEY: own_metadata(converted)})]
    for model in (trained, converted):
        state = {
            name: torch.from_numpy(one_hot(value.numpy())) if name.endswith(".sfr.index") else value
            for name, value in model.state_dict().items()
        }
        buffer = io.BytesIO()
        torch.save({"state_dict": state, METADATA_KEY: own_metadata(model), "args": argparse.Namespace(lr=0.1)}, buffer)
        made.append(buffer.getvalue())
    paddle: dict[str, Any] = {
        name.replace("running_mean", "_mean").replace("running_var", "_variance"): value.numpy().T
        if ppim.DIALECT.transposes(name)
        else value.numpy()
        for name, value in state.items()
    }
    made.append(pickle.dumps(paddle | {METADATA_KEY: own_metadata(converted), "StructuredToParameterName@@": {"a": "b"}}))
    return made


def others(whole: dict[str, Any], training: dict[str, torch.Tensor]) -> list[bytes]:
    """As other people leave them: objects beside the weights, arrays for tensors, other names, archives."""
    beside = {
        "args": argparse.Namespace(lr=0.1),
        "best_prec1": np.float64(1.5),
        "random": [np.arange(3), Path("a")],
        "state_dict_ema": training,
    }
    arrays = {name: value.numpy() for name, value in training.items()}
    wrapped = {f"module._orig_mod.{name}": value for name, value in training.items()} | {"criterion.weight": torch.ones(2)}
    saved = []
    for value in ({**whole, **beside}, {"net": {"model": wrapped}}, arrays):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=value is not arrays)
        saved.append(buffer.getvalue())
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net.pth", saved[1])
    pickled = [pickle.dumps(arrays, protocol) for protocol in (0, 2, 5)]
    return [*saved, *pickled, pickle.dumps({"state_dict": training}, 2), gzip.compress(saved[2]), zipped.getvalue()]


def manifests() -> list[bytes]:
    common: dict[str, Any] = {
        "target": "native",
        "sha256": digest(ARTIFACT),
        "bytes": len(ARTIFACT),
        "precision": "fp32",
        "source_sha256": "0" * 64,
    }
    small = Manifest(**common, architecture=None, preprocessing=None)
    whole = Manifest(
        **common, architecture=SMALL, preprocessing=Preprocessing.of(SMALL.input_size, SMALL.classes),
        details={"verified": False, "reason": "no GPU", "opset": {"": 17}}, libraries={"onnx": "1"},
        verification=({"inputs": "noise", "max_error": 1e-6, "passed": True},),
        proof={"seed": 1, "tolerance": 0.1, "logits": [[float(number) for number in range(10)]]},
    )  # fmt: skip
    return [manifest.to_json().encode() for manifest in (small, whole)]


def results() -> list[bytes]:
    return [to_json(replace(made, environment=MACHINE, after=MACHINE).to_dict()).encode() for made in (report(), on_cuda())]


def baselines() -> list[bytes]:
    """Of the network that the target compares, and of files with figures."""
    turns = [[0.01 + 0.0001 * ((7 * n + turn) % 5) for n in range(5)] for turn in range(8)]
    figures = {"format": ".onnx", "bytes": 5000, "multiply_adds": 7, "params": 9, "precision": "fp32", "operators": {"Conv": 3}}
    made = []
    for label, sha256, counts in ((NETWORK, None, None), ("a.onnx", "ab" * 32, figures)):
        row = Row(label, 5, 6, sha256, None, [result(*turns, label=label, backend="onnxruntime")], counts)
        settings = Settings(rounds=8, fresh=True)
        made.append(to_json(Report([row], settings, MACHINE, MACHINE).to_dict()).encode())
    return made


def choices() -> list[bytes]:
    def rounds(**times: float) -> dict[str, list[list[float]]]:
        return {label.replace("__", " "): [[time, time * 1.01]] * 8 for label, time in times.items()}

    forms = {"denseblock_1": "dense", "denseblock_2": "gather"}
    alone = rounds(gather=0.01, denseblock_1__dense=0.008, denseblock_2__dense=0.02)
    common: dict[str, Any] = {
        "settings": Settings(rounds=8), "environment": MACHINE, "target": "onnx", "device": "cpu", "threads": 2, "batch": 1,
        "options": {"opset": 17}, "program_sha256": "0" * 64, "source_sha256": "",
    }  # fmt: skip
    some = Choice(forms=forms, winner="combined", alone=alone, together=rounds(gather=0.01, combined=0.008), **common)
    none = Choice(forms=dict.fromkeys(forms, "gather"), winner="gather", alone={}, together={}, **common)
    return [choice.to_json().encode() for choice in (some, none)]


def images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    made = []
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 1 << 16, (9, 12), dtype=np.uint16))
    pictures = [deep, *(Image.fromarray(pixels).convert(mode) for mode in ("RGB", "L", "RGBA", "P", "1", "CMYK"))]
    options: dict[str, list[dict[str, Any]]] = {
        "PNG": [{}], "BMP": [{}], "PPM": [{}], "WEBP": [{}], "JPEG": [{}, {"exif": exif}],
        "TIFF": [{}, {"compression": "tiff_lzw", "exif": exif}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}],
    }  # fmt: skip
    for picture in pictures:
        for kind, several in options.items():
            for more in several:
                buffer = io.BytesIO()
                try:
                    picture.save(buffer, kind, **more)
                except (OSError, ValueError, RuntimeError):  # not every format has every mode
                    continue
                made.append(buffer.getvalue())
    return [*made, bytes(3073), b"\x09" + bytes(range(256)) * 12]


if __name__ == "__main__":
    write(Path(sys.argv[1]))

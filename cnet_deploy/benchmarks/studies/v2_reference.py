"""Write the authors' converted form of CondenseNet V2 as ONNX files, for condensenet_v2.py to measure, and compare it with ours.

``python -m cnet_deploy.benchmarks.studies.v2_reference CLONE FOLDER``: CLONE is a clone of github.com/jianghaojun/CondenseNetV2, whose
model code is run; nothing of it is part of this package. The random weights of our networks are saved as their ``.pth.tar``, their model
loads it, and ``torch.onnx.export`` writes it as it is, with its product by a matrix of ones and zeros in every layer. FOLDER gets
condensenet-v2-a.onnx, -b and -c, and report.json: how far the outputs differ, and how large files are. It takes some minutes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from cnet_deploy.artifacts.onnx_metadata import INPUT, OUTPUT
from cnet_deploy.benchmarks.studies.runtimes import Notify
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.benchmarks.sweep.paper import V2
from cnet_deploy.checkpoints.save import save
from cnet_deploy.errors import CheckFailed, InputRefused
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.files import check_output, write_text
from cnet_deploy.models.architecture import NAMED
from cnet_deploy.models.build import build_random
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions import open_session

IMAGES = 2
OPSET = 17
TOLERANCE = 1e-6  # of the largest logit, of what torch computes
TOLERANCE_ONNX = 1e-5  # of what onnxruntime computes
_MODULE = "model.converted_condensenetv2"  # in their repository
_TOP = ("model", "utils")  # their packages, whose names others may have too


@dataclass(frozen=True)
class Compared:
    """A network in both forms. Differences are the largest, of the largest of their logits in torch; sizes are in bytes.

    ``model`` is our model in torch, ``onnx`` our graph and ``their_onnx`` theirs, both in onnxruntime.
    """

    network: str
    model: float
    onnx: float
    their_onnx: float
    bytes: dict[str, int]

    def line(self) -> str:
        """One line of text."""
        sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.bytes.items())
        differences = f"torch {self.model:.1e}, our ONNX {self.onnx:.1e}, their ONNX {self.their_onnx:.1e} of the largest logit"
        return f"{self.network}: {differences}; {sizes}"

    def require_equal(self) -> None:
        """Raise CheckFailed where one of them computes something else."""
        if not (self.model <= TOLERANCE and self.onnx <= TOLERANCE_ONNX and self.their_onnx <= TOLERANCE_ONNX):  # NaN fails
            raise CheckFailed(
                f"the two forms differ: {self.line()}; expected at most {TOLERANCE:g} in torch and {TOLERANCE_ONNX:g} in onnxruntime"
            )


@contextlib.contextmanager
def code_of(clone: Path) -> Iterator[ModuleType]:
    """The module of their converted networks. Raises InputRefused for a folder that is no clone."""
    if not (clone / _MODULE.replace(".", "/")).with_suffix(".py").is_file():
        raise InputRefused(f"{clone}: has no {_MODULE.replace('.', '/')}.py; expected a clone of github.com/jianghaojun/CondenseNetV2")
    own = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in _TOP}
    sys.path.insert(0, str(clone.absolute()))
    try:
        yield importlib.import_module(_MODULE)
    finally:
        sys.path.remove(str(clone.absolute()))
        for name in [name for name in sys.modules if name.partition(".")[0] in _TOP]:
            del sys.modules[name]
        sys.modules.update(own)


def their_model(code: ModuleType, name: str, checkpoint: Path) -> nn.Module:
    """Their converted network of our name, with the weights of a file as their converter writes it."""
    make = getattr(code, f"converted_cdnv2_{name[-1]}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its blocks
        model: nn.Module = make(SimpleNamespace(dataset="imagenet", num_classes=NAMED[name].classes))
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    return model.eval()


def compare(code: ModuleType, name: str, folder: Path) -> Compared:
    """Write ``folder``/``name``.onnx, their form of our network with random weights, and compare it with ours."""
    model = build_random(NAMED[name])
    images = np.random.default_rng(0).standard_normal((IMAGES, *NAMED[name].image_shape), np.float32)
    out = folder / f"{name}.onnx"
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-v2-") as place:
        paths = {
            "our .safetensors": Path(place) / "m.safetensors", "their .pth.tar": Path(place) / "m.pth.tar",
            "our .onnx": Path(place) / "m.onnx", "their .onnx": out,
        }  # fmt: skip
        for key in ("our .safetensors", "their .pth.tar"):
            save(model, paths[key])
        theirs = their_model(code, name, paths["their .pth.tar"])
        paths["our .onnx"].write_bytes(build_graph(lower(model)).SerializeToString())
        _export(theirs, torch.from_numpy(images[:1]), out)
        with torch.inference_mode():
            expected, ours = (network(torch.from_numpy(images)).numpy() for network in (theirs, model))
        outputs = [ours]
        for path in (paths["our .onnx"], out):
            with open_session(path, backend="onnxruntime", timeout=None) as session:
                outputs.append(np.concatenate([session.run(images[number : number + 1]) for number in range(IMAGES)]))
        sizes = {key: path.stat().st_size for key, path in paths.items()}
    scale = float(np.abs(expected).max())
    differences = (float(np.abs(found - expected).max()) / scale for found in outputs)
    return Compared(name, next(differences), next(differences), next(differences), sizes)


def _export(model: nn.Module, images: torch.Tensor, out: Path) -> None:
    """With torch's older exporter: it needs a sixth of the time of the newer one here, and onnxruntime runs both files as fast.

    The number of ``images`` is fixed: their shuffle takes it as a constant.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), str(out), input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=False)


def main(clone: Path, folder: Path, notify: Notify = print) -> None:
    """Run it. Raises InputRefused for a ``clone`` that is none, CheckFailed where outputs differ."""
    with code_of(clone) as code:
        folder.mkdir(parents=True, exist_ok=True)
        check_output(folder / "report.json")
        results: list[dict[str, Any]] = []
        for row in V2:
            compared = compare(code, row.model, folder)
            notify(compared.line())
            compared.require_equal()
            results.append(asdict(compared))
    write_text(folder / "report.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.v2_reference CLONE FOLDER")

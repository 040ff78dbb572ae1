"""What works on this machine, shown by doing it: a tiny network, exported for each backend and run in a process of its own.

A library that is missing, too old or crashes is a line that says what to install, and never the end of the diagnosis.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnet_deploy.errors import CnetDeployError, InputRefused, printable
from cnet_deploy.hardware.cuda import why_no_device

SECONDS = 180.0  # after which a probe is given up
# name -> (backend, device, options of its session, distributions that it comes in)
_PROBES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "torch": ("torch", "cpu", {}, ("torch",)),
    "torch.compile": ("torch", "cpu", {"compiled": True}, ("torch",)),
    "torch on cuda": ("torch", "cuda", {}, ("torch",)),
    "onnxruntime": ("onnxruntime", "cpu", {}, ("onnxruntime-gpu", "onnxruntime")),
    "onnxruntime on cuda": ("onnxruntime", "cuda", {}, ("onnxruntime-gpu", "onnxruntime")),
    "onnxruntime on cuda, tensorrt": ("onnxruntime", "cuda", {"provider": "tensorrt"}, ("onnxruntime-gpu", "onnxruntime")),
    "native": ("native", "cpu", {}, ()),
    "openvino": ("openvino", "cpu", {}, ("openvino",)),
    "tensorrt": ("tensorrt", "cuda", {"flavour": "tensorrt"}, ("tensorrt",)),
    "tensorrt-rtx": ("tensorrt", "cuda", {"flavour": "tensorrt-rtx"}, ("tensorrt-rtx",)),
}
# What a probe that crashed or was never started needs.
_REMEDIES = {
    "torch": "pip install torch (pytorch.org/get-started)", "onnxruntime": "pip install 'cnet-deploy[cpu]' or 'cnet-deploy[gpu]'",
    "native": "apt-get install g++, or pip install 'cnet-deploy[compiler]'", "openvino": "pip install 'cnet-deploy[openvino]'",
    "tensorrt": "pip install 'cnet-deploy[gpu]' or 'cnet-deploy[rtx]'",
}  # fmt: skip
_PAIRS = (("onnxruntime", "onnxruntime-gpu"),)  # that overwrite each other's files


@dataclass(frozen=True)
class Finding:
    """One line: whether something works here; if not, why and what to do. ``builds`` is for what can build artifacts that it can't run."""

    name: str
    works: bool
    version: str | None = None
    builds: bool = False
    reason: str | None = None

    def words(self) -> str:
        """For people."""
        state = "works" if self.works else "builds only" if self.builds else "no"
        return printable(" ".join(filter(None, (f"{self.name:<30}", f"{state:<12}", self.version, self.reason and f"- {self.reason}"))))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


def known_names() -> tuple[str, ...]:
    """What can be asked for by name: the backends."""
    return tuple(dict.fromkeys(backend for backend, *_ in _PROBES.values()))


def diagnose(names: Sequence[str] = (), told: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Try every backend, or those of these names, on every device that it knows; ``told`` hears each finding as it comes.

    Raises InputRefused for a name that is none.
    """
    if unknown := [name for name in names if name not in known_names()]:
        raise InputRefused(f"no backend is called {', '.join(unknown)}; expected some of {', '.join(known_names())}")
    found: list[Finding] = []

    def add(finding: Finding) -> None:
        found.append(finding)
        told(finding)

    if not names:
        for finding in _surroundings():
            add(finding)
    for pair in _PAIRS:
        if all(_version(name) for name in pair) and (not names or pair[0] in names):
            remedy = f"pip uninstall -y {' '.join(pair)}, then install one of the extras cpu and gpu"
            add(Finding(" and ".join(pair), False, reason=f"both are installed and overwrite each other's files: {remedy}"))
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-doctor-") as folder:
        for name, (backend, *_) in _PROBES.items():
            if not names or backend in names:
                add(_probed(name, Path(folder)))
    return found


def missing(found: Sequence[Finding], names: Sequence[str]) -> list[str]:
    """Those of ``names`` that work on no device, or whose installation is broken."""
    works = {_PROBES[finding.name][0] for finding in found if finding.works and finding.name in _PROBES}
    broken = {pair[0] for pair in _PAIRS for finding in found if finding.name == " and ".join(pair)}
    return [name for name in names if name not in works or name in broken]


def _surroundings() -> list[Finding]:
    """The GPU with its driver, and the library for its memory."""
    reason = why_no_device()
    if reason is not None:
        libraries = [f"{name} {version}" for name in ("pycuda", "cuda-python") if (version := _version(name))]
        return [Finding("CUDA device", False, ", ".join(libraries) or None, reason=reason)]
    from cnet_deploy.hardware.cuda import Device

    try:
        with Device() as device:
            capability = ".".join(map(str, device.compute_capability))
            about = f"{device.name}, compute capability {capability}, by {device.library} {device.library_version}"
            return [Finding("CUDA device", True, about)]
    except CnetDeployError as error:
        return [Finding("CUDA device", False, reason=str(error))]


def _probed(name: str, folder: Path) -> Finding:
    backend, _, _, packages = _PROBES[name]
    version = next((version for package in packages if (version := _version(package))), None)
    command = [sys.executable, "-m", "cnet_deploy.workflows.doctor", name, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            name, False, version, reason=f"did not answer within {SECONDS:.0f} s; try it again, or reinstall: {_REMEDIES[backend]}"
        )
    if done.returncode < 0:
        return Finding(name, False, version, reason=f"crashed (signal {-done.returncode}); reinstall it: {_REMEDIES[backend]}")
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return Finding(name, answer["works"], answer["version"] or version, answer["builds"], answer["reason"])
    except (ValueError, KeyError, IndexError, TypeError):
        said = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return Finding(name, False, version, reason=f"{printable(said, 200)}; reinstall it: {_REMEDIES[backend]}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(name: str, folder: Path) -> dict[str, Any]:
    """What a process of its own does: export, open, run, compare with the yardstick."""
    answer: dict[str, Any] = {"works": False, "builds": False, "version": None, "reason": None}
    try:
        _run(name, folder, answer)
    except CnetDeployError as error:
        answer["reason"] = str(error)
    except Exception as error:  # whatever a broken library raises is what has to be told
        answer["reason"] = f"{type(error).__name__}: {error}; reinstall it: {_REMEDIES[_PROBES[name][0]]}"
    return answer


def _run(name: str, folder: Path, answer: dict[str, Any]) -> None:
    import numpy as np

    from cnet_deploy.artifacts.manifest import Manifest, manifest_path
    from cnet_deploy.checkpoints.save import save
    from cnet_deploy.exporters import SUFFIXES, exporter
    from cnet_deploy.files import digest
    from cnet_deploy.hardware.tensorrt import find
    from cnet_deploy.models.architecture import Architecture
    from cnet_deploy.models.build import build_random
    from cnet_deploy.program.lower import lower
    from cnet_deploy.sessions import open_session

    backend, device, options, _ = _PROBES[name]
    options = dict(options)
    model = build_random(Architecture((1, 1, 1), (8, 8, 8), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=0.5))
    program = lower(model)
    batch = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    target = {"onnxruntime": "onnx", "openvino": "onnx", "torch": None}.get(backend, backend)
    path = folder / f"{name.replace(' ', '-')}{SUFFIXES[target] if target else '.safetensors'}"
    if target is None:
        save(model, path)
    else:
        choices = {"flavour": options.pop("flavour")} if "flavour" in options else {}
        if choices:
            answer["version"] = find(choices["flavour"]).version
        written = exporter(target)(program, path, **choices)
        answer["builds"] = target == "tensorrt"
        data = path.read_bytes()
        made = Manifest(
            target, digest(data), len(data), written.precision, "", model.architecture, model.preprocessing, written.details,
            written.libraries,
        )  # fmt: skip
        manifest_path(path).write_text(made.to_json(), encoding="utf-8")
    with open_session(path, backend=backend, device=device, **options) as session:
        found, expected = session.run(batch), program.run(batch)
    if not np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max():
        answer["reason"] = f"computes something else than it should (by {np.abs(found - expected).max():.2g}): {_REMEDIES[backend]}"
    else:
        answer["works"] = True


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1], Path(sys.argv[2]))))

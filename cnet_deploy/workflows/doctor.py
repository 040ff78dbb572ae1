"""Find out what works on this machine by trying it: a tiny network is exported for each backend and run in a separate process.

A library that is missing, too old or crashes gives a line that says what to install; the other backends are still tried.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnet_deploy import subprocesses
from cnet_deploy.errors import CnetDeployError, InputRefused, printable
from cnet_deploy.files import temporary_folder
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.sessions import backends, names, open_session
from cnet_deploy.sessions.base import Floats, Probe

SECONDS = 180.0  # time limit of a probe
_CUDA_LIBRARIES = ("pycuda", "cuda-python")
_AT_ONCE = 4  # probes; each loads a runtime of some hundred megabytes
_TOLERANCE = 1e-3  # of what is not in int8, relative to the largest output


@dataclass(frozen=True)
class Finding:
    """Whether something works here; if not, why and what to do. ``builds``: artifacts can be built here but not run.

    ``version`` is that of its package; of what has none, the instructions of the processor that it uses.
    """

    name: str
    works: bool
    version: str | None = None
    builds: bool = False
    reason: str | None = None

    def lines(self) -> list[str]:
        """For a terminal: the name and whether it works; the reason, if there is one, indented below."""
        state = "works" if self.works else "builds only" if self.builds else "no"
        first = printable(f"{self.name:<30} {state:<12} {self.version or ''}".rstrip())
        return [first, *([f"    {printable(self.reason)}"] if self.reason else [])]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


def known_names() -> tuple[str, ...]:
    """The names that ``diagnose`` accepts: those of the backends."""
    return names()


def probes(name: str) -> tuple[Probe, ...]:
    """The probes of a backend: its own if it declares some, else a session on each of its devices."""
    spec = backends()[name]
    return spec.probes or tuple(Probe(name if device == "cpu" else f"{name} on {device}", device) for device in spec.devices)


def diagnose(wanted: Sequence[str] = (), report: Callable[[Finding, float], None] = lambda *_: None) -> list[Finding]:
    """Try every backend, or only the ``wanted`` ones, on each of its devices, two or more at a time.

    ``report`` gets each finding as soon as it is known, with the share of the work done (0 to 1). What is returned is in the order of the
    backends. Raises InputRefused for an unknown name.
    """
    if unknown := [name for name in wanted if name not in known_names()]:
        raise InputRefused(f"no backend is called {', '.join(unknown)}; expected some of {', '.join(known_names())}")
    chosen = [(name, probe) for name in wanted or known_names() for probe in probes(name)]
    known = [] if wanted else _surroundings()
    known += [conflict for name in wanted or known_names() if (conflict := _conflict(name)) is not None]
    for finding in known:
        report(finding, 0.0)
    found, processes = dict[int, Finding](), subprocesses.Several()
    with (
        temporary_folder("doctor") as folder,
        ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool,
    ):
        running = {pool.submit(_probed, name, probe, folder, processes): place for place, (name, probe) in enumerate(chosen)}
        try:
            for done in as_completed(running):
                found[running[done]] = done.result()
                report(done.result(), len(found) / len(chosen))
        except BaseException:  # of Ctrl-C: the others are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end()
            raise
    return [*known, *(found[place] for place in sorted(found))]


def missing(findings: Sequence[Finding], wanted: Sequence[str]) -> list[str]:
    """The ``wanted`` backends that work on no device, or whose installation is broken."""
    works = {finding.name for finding in findings if finding.works}
    return [name for name in wanted if not works.intersection(probe.name for probe in probes(name)) or _conflict(name) is not None]


def _conflict(name: str) -> Finding | None:
    """A finding if two packages of a backend are installed that overwrite each other's files, else None."""
    exclusive = backends()[name].exclusive
    if len(exclusive) < 2 or not all(_version(package) for package in exclusive):
        return None
    remedy = f"pip uninstall -y {' '.join(exclusive)}, then install one of the extras cpu and gpu"
    return Finding(" and ".join(exclusive), False, reason=f"both are installed and overwrite each other's files: {remedy}")


def _surroundings() -> list[Finding]:
    """The processor with its instructions, and the GPU with its driver and the CUDA binding in use."""
    return [Finding("processor", True, f"{host_machine()}: {', '.join(host_isas())}"), _gpu()]


def _gpu() -> Finding:
    reason = why_no_device()
    if reason is not None:
        libraries = [f"{name} {version}" for name in _CUDA_LIBRARIES if (version := _version(name))]
        return Finding("CUDA device", False, ", ".join(libraries) or None, reason=reason)
    from cnet_deploy.hardware.cuda import Device

    try:
        with Device() as device:
            capability = ".".join(map(str, device.compute_capability))
            about = f"{device.name}, compute capability {capability}, by {device.library} {device.library_version}"
            return Finding("CUDA device", True, about)
    except CnetDeployError as error:
        return Finding("CUDA device", False, reason=str(error))


def _probed(backend: str, probe: Probe, folder: Path, among: subprocesses.Several) -> Finding:
    """Run one probe in a separate process, which is one of ``among``."""
    spec, name = backends()[backend], probe.name
    version = next((version for package in probe.packages or spec.packages if (version := _version(package))), None)
    try:
        done = subprocesses.run(subprocesses.python(__spec__.name, backend, name, str(folder)), seconds=SECONDS, among=among)
    except subprocesses.TooLong:
        reason = f"did not answer within {SECONDS:.0f} s; try it again, or reinstall: {spec.remedy}"
        return Finding(name, False, version, reason=reason)
    except OSError as error:
        return Finding(name, False, version, reason=f"no process can be started: {error.strerror}; close something and try it again")
    if done.code < 0:
        return Finding(name, False, version, reason=f"crashed (signal {-done.code}); reinstall it: {spec.remedy}")
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return Finding(name, answer["works"], version or answer["instructions"], answer["builds"], answer["reason"])
    except (ValueError, KeyError, IndexError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.code}"])[-1]
        return Finding(name, False, version, reason=f"{printable(last, 200)}; reinstall it: {spec.remedy}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(backend: str, name: str, folder: Path) -> dict[str, Any]:
    """The work of the separate process: export, open, run, compare with ``Program.run``."""
    answer: dict[str, Any] = {"works": False, "builds": False, "instructions": None, "reason": None}
    try:
        _run(backend, next(probe for probe in probes(backend) if probe.name == name), folder, answer)
    except CnetDeployError as error:
        answer["reason"] = str(error).replace(f"{folder}{os.sep}", "")
    except Exception as error:  # a broken library may raise anything
        answer["reason"] = f"{type(error).__name__}: {error}; reinstall it: {backends()[backend].remedy}"
    return answer


def _run(backend: str, probe: Probe, folder: Path, answer: dict[str, Any]) -> None:
    import numpy as np

    from cnet_deploy.artifacts.manifest import manifest_path
    from cnet_deploy.artifacts.pair import describe
    from cnet_deploy.artifacts.self_check import tolerance_of
    from cnet_deploy.checkpoints.save import save
    from cnet_deploy.exporters import exporter, target_by_suffix
    from cnet_deploy.models.architecture import Architecture
    from cnet_deploy.models.build import build_random
    from cnet_deploy.program.calibration import calibrate
    from cnet_deploy.program.lower import lower
    from cnet_deploy.program.quantize import Quantization

    spec = backends()[backend]
    model = build_random(Architecture((1, 1, 1), (8, 8, 8), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=0.5))
    program = lower(model)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), np.uint8)
    images = program.preprocessing.apply(pixels)
    batch, precision = images[:2], str(probe.export.get("precision", "fp32"))
    suffix = spec.suffixes[0]
    path = folder / f"{probe.name.replace(' ', '-')}{suffix}"
    expected: Callable[[Floats], Floats] = program.run
    allowed = _TOLERANCE
    if (target := target_by_suffix(suffix)) is None:
        save(model, path)
    else:
        quantization = {"quantization": Quantization(calibrate(program, images))} if precision == "int8" else {}
        written = exporter(target)(program, path, **probe.export, **quantization)
        if written.exact is not None:
            expected = written.exact
        elif precision == "int8":
            allowed = tolerance_of(precision)
        # Only a file that no other backend runs shows that this backend can build.
        answer["builds"] = sum(suffix in other.suffixes for other in backends().values()) == 1
        manifest = describe(
            path, target, written.precision, details=written.details, libraries=written.libraries, architecture=model.architecture,
            preprocessing=model.preprocessing,
        )  # fmt: skip
        manifest_path(path).write_text(manifest.to_json(), encoding="utf-8")
    with open_session(path, backend=backend, device=probe.device, **probe.options) as session:
        logits, right = session.run(batch), expected(batch)
        answer["instructions"] = getattr(session, "isa", None)
        if precision == "int8" and session.precision != precision:
            answer["reason"] = f"it runs a network of {precision} in {session.precision}; reinstall it: {spec.remedy}"
            return
    difference = np.abs(logits - right).max()
    if not difference <= allowed * np.abs(right).max():
        answer["reason"] = f"its outputs are wrong by up to {difference:.2g}; reinstall it: {spec.remedy}"
    else:
        answer["works"] = True


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))

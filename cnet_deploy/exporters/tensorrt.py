"""TensorRT engines: an ONNX graph in the requested precision, built by the installed TensorRT (see hardware/tensorrt.py)."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnet_deploy.errors import InputRefused, Unavailable, deferred_interrupts, printable
from cnet_deploy.exporters.base import Option, Serving, Target, Written, require_quantization
from cnet_deploy.files import atomic_output, check_output, read_bytes
from cnet_deploy.hardware.engine_layers import Layers, of_engine, of_network

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from cnet_deploy.artifacts.manifest import Manifest
    from cnet_deploy.hardware.tensorrt import Flavour
    from cnet_deploy.program.program import Program
    from cnet_deploy.program.quantize import Quantization

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
TARGET = Target(
    suffix=".engine",
    kind="engine",
    title="TensorRT",
    help="Build a TensorRT engine for NVIDIA GPUs.",
    container="TensorRT engine",
    options=(
        Option("precision", "choice", "fp32, tf32, fp16, bf16 or int8 [default: fp32]", choices=PRECISIONS, several=True),
        Option("batch", "batches", "N, or LEAST:BEST:MOST [default: 1:1:32]"),
        Option("workspace", "bytes", "most device memory that a layer may use, as 512M or 2G"),
        Option("timing_cache", "file", "a file that keeps timings for later builds", affects_artifact=False),
        Option(
            "flavour",
            "choice",
            "which one builds [default: the one that can]",
            flag="tensorrt-flavour",
            choices=("tensorrt", "tensorrt-rtx"),
        ),
    ),
    serving=(Serving("tensorrt_plan", "tensorrt", "model.plan", runs_on="gpu"),),
    measured_as="onnx",  # from whose graph it is built
)
DEFAULT_BATCH = (1, 1, 32)
MAX_BATCH = 4096
Progress = Callable[[str, float], None]


def write(
    network: Program | nn.Module,
    path: Path,
    *,
    precision: str = "fp32",
    batch: int | tuple[int, int, int] | None = None,
    workspace: int | None = None,
    timing_cache: Path | None = None,
    flavour: str | None = None,
    quantization: Quantization | None = None,
    progress: Progress = lambda *_: None,
) -> Written:
    """Build one engine. The same network gives the same bytes only with ``tensorrt-rtx`` and a fixed batch.

    ``batch`` is (least, best, most) images per inference, or one number for all three; None: (1, 1, 32). ``workspace`` is the most device
    memory in bytes that a layer may use. ``timing_cache`` is a file that is read if it exists, and written. ``flavour`` forces "tensorrt"
    or "tensorrt-rtx". ``quantization`` is what int8 needs, as for an ONNX file. ``progress`` gets a line of text and the share that is
    done (0 to 1). Raises InputRefused for impossible options and for a graph that TensorRT refuses, Unavailable if no engine can be built,
    CheckFailed if the engine has another precision than requested, KeyboardInterrupt if Ctrl-C ends the build.
    """
    if precision not in PRECISIONS:
        raise InputRefused(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    least, best, most = _profile(batch)
    if workspace is not None and workspace < 1:
        raise InputRefused(f"workspace {workspace}; expected a number of bytes")
    import onnx

    from cnet_deploy.hardware import tensorrt

    installed = tensorrt.find(flavour)
    if reason := installed.why_not_build():
        raise Unavailable(f"{reason}; build it on that device, or install tensorrt-rtx, which builds for RTX GPUs on any machine")
    if precision == "int8":
        network, quantization = require_quantization(network, quantization)
    model = _graph(network, "fp32" if precision == "tf32" else precision, installed, quantization)
    build = _Build(installed, model, network)
    build.configure(precision, (least, best, most), workspace)
    with build.caching(timing_cache):
        content = build.run(progress)
    path.write_bytes(content)
    layers = build.layers(content)
    layers.check(precision, floats=_floats(quantization))
    details = {
        "flavour": installed.name, "version": installed.version, **build.device, "strongly_typed": installed.strongly_typed,
        "profiles": [{"min": least, "opt": best, "max": most}], "workspace": workspace,
        "opset": model.opset_import[0].version, **layers.to_dict(),
    }  # fmt: skip
    counts = ", ".join(f"{count} {name}" for name, count in details["layers"].items())
    note = f"built by {installed.name} {installed.version}; layers by precision: {counts} (read from the {details['precision_source']})"
    libraries = {installed.name: installed.version, "onnx": onnx.__version__}
    return Written(precision, details, libraries, installed.why_not_run(), (note,))


def comparable(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``options`` with a shared timing cache, so that equal layers of several networks are built in the same way and can be compared.

    Not with 8.6, which refuses caches of its own.
    """
    from cnet_deploy.hardware import tensorrt

    installed = tensorrt.find(options.get("flavour"))
    if "timing_cache" in options or not installed.has_timing_cache or not installed.strongly_typed:
        return dict(options)
    return {**options, "timing_cache": folder / "timing.cache"}


def require_servable(manifest: Manifest) -> None:
    """Raise Unavailable for an engine that no Triton server reads."""
    if manifest.details.get("flavour") == "tensorrt-rtx":
        raise Unavailable(
            "Triton's backend reads engines of tensorrt, but this one is of tensorrt-rtx; export with --tensorrt-flavour "
            "tensorrt on a machine with the server's GPU, or with --onnx"
        )


def _profile(batch: int | tuple[int, int, int] | None) -> tuple[int, int, int]:
    least, best, most = DEFAULT_BATCH if batch is None else (batch,) * 3 if isinstance(batch, int) else batch
    if not 1 <= least <= best <= most <= MAX_BATCH:
        raise InputRefused(f"batch {least}:{best}:{most}; expected least:best:most in this order, from 1 to {MAX_BATCH}")
    return least, best, most


def _floats(quantization: Quantization | None) -> int:
    """How many layers that multiply stay in fp32 in an int8 engine: a 1x1 and a 3x3 of each that is kept, the stem and the classifier."""
    return 0 if quantization is None else 2 * len(quantization.kept) + 2


def _graph(network: Program | nn.Module, precision: str, flavour: Flavour, quantization: Quantization | None = None) -> onnx.ModelProto:
    import onnx

    from cnet_deploy.exporters.onnx.graph import build_graph
    from cnet_deploy.program.program import Program

    if precision == "int8":
        from cnet_deploy.exporters.onnx.quantized import build_quantized

        model = build_quantized(*require_quantization(network, quantization))
    elif isinstance(network, Program):
        model = build_graph(network, precision=precision)
    else:
        from cnet_deploy.exporters.onnx.trace import trace

        model = trace(network, precision=precision)
        if model.opset_import[0].version not in flavour.opsets:
            model = onnx.version_converter.convert_version(model, flavour.opsets.stop - 1)
    flavour.require_precision(precision, model.opset_import[0].version)
    return model


class _Build:
    """A build from the parsed network to the engine's bytes. ``device`` describes the GPUs that the engine is for."""

    def __init__(self, flavour: Flavour, model: onnx.ModelProto, network: Program | nn.Module) -> None:
        from cnet_deploy.artifacts.manifest import engine_name
        from cnet_deploy.program.program import Program

        self._flavour, self._trt = flavour, flavour.module
        self._log = flavour.logger()
        self._log.errors.clear()
        self.device: Mapping[str, Any] = {}
        try:
            self._builder = self._trt.Builder(self._log)
        except TypeError:  # raised by 8.6 without a device
            raise Unavailable(self._with_errors("TensorRT can't start a builder")) from None
        flags = self._trt.NetworkDefinitionCreationFlag
        wanted = "STRONGLY_TYPED" if flavour.strongly_typed else "EXPLICIT_BATCH"
        self._network = self._builder.create_network(1 << int(getattr(flags, wanted)) if hasattr(flags, wanted) else 0)
        if isinstance(network, Program):  # the engine keeps this name, and with it what its manifest must agree with
            self._network.name = engine_name(network.architecture, network.preprocessing, network.class_names)
        parser = self._trt.OnnxParser(self._network, self._log)
        if not parser.parse(model.SerializeToString()):
            refused = [parser.get_error(number) for number in range(parser.num_errors)]
            raise InputRefused(
                f"{flavour.name} {flavour.version} refuses the network: " + "; ".join(_described(e, model, network) for e in refused)
            )

    def configure(self, precision: str, batch: tuple[int, int, int], workspace: int | None) -> None:
        """Set the profile, the precision, the workspace and the devices."""
        from cnet_deploy.artifacts.onnx_metadata import INPUT

        trt = self._trt
        self._config = config = self._builder.create_builder_config()
        flag = trt.BuilderFlag
        (config.set_flag if precision == "tf32" else config.clear_flag)(flag.TF32)
        if not self._flavour.strongly_typed and precision == "fp16":
            config.set_flag(flag.FP16)
            config.set_flag(flag.OBEY_PRECISION_CONSTRAINTS)
            for number in range(self._network.num_layers):
                layer = self._network.get_layer(number)
                if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY):
                    layer.precision = trt.float16
        if not self._flavour.strongly_typed and precision == "int8":
            config.set_flag(flag.INT8)  # ranges are in the graph, so no calibrator is asked
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # required by the inspector
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        shape = tuple(self._network.get_input(0).shape)[1:]
        profile = self._builder.create_optimization_profile()
        profile.set_shape(INPUT, *((size, *shape) for size in batch))
        config.add_optimization_profile(profile)
        _share_the_profile(trt, config)
        if self._flavour.rtx:
            capabilities = self._flavour.capabilities()
            config.num_compute_capabilities = len(capabilities)
            for number, capability in enumerate(capabilities):
                config.set_compute_capability(capability, number)
            self.device = {"compute_capabilities": [_dotted(capability.name) for capability in capabilities]}
        else:
            from cnet_deploy.hardware.cuda import Device

            with Device() as device:
                major, minor = device.compute_capability
                self.device = {"compute_capability": f"{major}.{minor}", "gpu": device.name}

    @contextlib.contextmanager
    def caching(self, path: Path | None) -> Iterator[None]:
        """Use a timing cache and save it, also after a failed or interrupted build, since its timings stay valid."""
        if path is None:
            yield
            return
        if not self._flavour.has_timing_cache:
            raise InputRefused(f"{self._flavour.name} has no timing cache; leave --timing-cache out")
        path = Path(path)
        check_output(path)
        earlier = read_bytes(path) if path.exists() else b""
        self._log.errors.clear()
        cache = self._config.create_timing_cache(earlier)
        if cache is None or not self._config.set_timing_cache(cache, False) or (earlier and self._log.errors):
            raise InputRefused(f"{path}: {self._with_errors('is no timing cache of this TensorRT on this device')}; give it another name")
        try:
            yield
        finally:
            with atomic_output(path) as temporary:
                temporary.write_bytes(bytes(self._config.get_timing_cache().serialize()))

    def run(self, progress: Progress) -> bytes:
        """Build the engine. Ctrl-C ends the build at its next step, if this TensorRT reports steps."""
        with deferred_interrupts() as interrupted, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if hasattr(self._trt, "IProgressMonitor"):
                self._config.progress_monitor = _monitor(self._trt, progress, interrupted)
            built = self._builder.build_serialized_network(self._network, self._config)
        if interrupted.is_set():
            raise KeyboardInterrupt
        if built is None:
            raise Unavailable(self._with_errors("TensorRT built no engine"))
        return bytes(built)

    def layers(self, content: bytes) -> Layers:
        """Layers by precision: of the engine if a device can open it, else of the network."""
        if self._flavour.why_not_run() is not None:
            return of_network(self._network, self._trt)
        engine = self._trt.Runtime(self._log).deserialize_cuda_engine(content)
        if engine is None:
            return of_network(self._network, self._trt)  # for another device than this one
        return of_engine(engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _with_errors(self, message: str) -> str:
        errors = "; ".join(dict.fromkeys(self._log.errors)) or "no reason given"
        return f"{message} ({self._flavour.name} {self._flavour.version}): {printable(errors, 400)}"


def _share_the_profile(trt: Any, config: Any) -> None:
    """Let several contexts use the engine's one profile, since a session has a context for each batch size. 10 and later always do."""
    if feature := getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None):
        config.set_preview_feature(feature, True)


def _described(error: Any, model: onnx.ModelProto, network: Program | nn.Module) -> str:
    """A parser's error with its node and, for the family, the model's layer."""
    from cnet_deploy.program.program import Program

    number = error.node()
    node = model.graph.node[number] if 0 <= number < len(model.graph.node) else None
    text = f"{printable(error.desc(), 300)} ({error.code().name})"
    if node is None:
        return text
    where = f"node {number} '{node.name}' ({node.op_type})"
    if isinstance(network, Program):
        names = [layer.name for layer in (network.stem, *network.body, network.pool, network.head)]
        if owner := max((name for name in names if node.name.startswith(name)), key=len, default=None):
            where += f" of layer {owner}"
    return f"{where}: {text}"


def _monitor(trt: Any, progress: Progress, interrupted: threading.Event) -> Any:
    """A monitor that reports TensorRT's nested phases as a share of the whole build."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._phases: dict[str, list[float]] = {}  # name -> steps done, all steps, share of the build, start

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            share, start = 1.0, 0.0
            if parent in self._phases:
                done, of, width, begin = self._phases[parent]
                share, start = width / max(of, 1), begin + width * done / max(of, 1)
            self._phases[name] = [0, steps, share, start]
            progress(name, start)

        def step_complete(self, name: str, step: int) -> bool:
            if phase := self._phases.get(name):
                phase[0] = step + 1
                progress(name, min(1.0, phase[3] + phase[2] * phase[0] / max(phase[1], 1)))
            return not interrupted.is_set()

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)

    return Monitor()


def _dotted(name: str) -> str:
    """``SM120`` is compute capability 12.0.

    >>> _dotted("SM86"), _dotted("SM120")
    ('8.6', '12.0')
    """
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"

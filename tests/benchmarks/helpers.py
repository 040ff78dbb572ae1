"""Reports with known figures, and settings for those who can't wait."""

from __future__ import annotations

from typing import Any

from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Result, Settings
from cnet_deploy.benchmarks.sweep.results import Report, Row

QUICK = Settings(rounds=2, seconds=0.0, least=2, warmup=0.0, rewarm=0.0)


def result(
    *rounds: list[float], label: str = "x", backend: str = "torch", threads: int = 1, batch: int = 1, device: str = "cpu", **values: Any
) -> Result:
    """A cell that took these seconds."""
    cell = Cell(label, label, backend, threads, batch, device=device)
    return Result(
        cell, batch=batch, cold_seconds=[0.5], open_seconds=[0.2], warmup=[0.1, 0.05], rounds=[list(part) for part in rounds], **values
    )


def report(**changes: Any) -> Report:
    """Two of the paper's networks and a file with a hostile name, on two backends, one cell of which failed."""
    steady = [[0.010 + 0.0001 * ((7 * n + turn) % 5) for n in range(20)] for turn in range(2)]
    rows = [
        Row("mobilenet-1.0-224", 569_000_000, 4_230_000, None, 29.4, []),
        Row("condensenet-74-g8", 274_000_000, 2_940_000, None, 29.0, []),
        Row("<script>alert(1)</script>|.onnx", 1_500_000, None, "ab" * 32, 12.5, []),
        Row("unknown.onnx", None, None, "cd" * 32, None, []),
    ]
    for number, row in enumerate(rows):
        scaled = [[sample * (number + 1) for sample in part] for part in steady]
        row.results = [result(*scaled, label=row.label, backend="onnxruntime", peak_bytes=100 << 20)]
        row.results.append(result(*([s / 3 for s in part] for part in scaled), label=row.label, backend="native", peak_bytes=10 << 20))
        row.results.append(result(*scaled, label=row.label, backend="onnxruntime", batch=8))
    rows[1].results[1] = Result(rows[1].results[1].cell, error="no compiler <b>here</b>", exit_code=5)
    values: dict[str, Any] = {"rows": rows, "settings": Settings(rounds=2), "after": environment()}
    return Report(**{**values, **changes})


STATE = {
    "sm_mhz": 1980.0, "memory_mhz": 3201.0, "max_sm_mhz": 1980.0, "max_memory_mhz": 3201.0, "celsius": 34.0, "watts": 76.1,
    "limit_watts": 700.0, "persistence": "Enabled", "compute_mode": "Default", "mig_mode": "Disabled", "performance_state": "P0",
    "reasons": [], "slowdown_microseconds": {"sw_power_cap": 12.0, "hw_thermal_slowdown": 0.0},
}  # fmt: skip


def on_cuda(**changes: Any) -> Report:
    """A network of the paper and a file on a GPU, on three backends with two batches; one cell failed."""
    machine = {**environment(), "gpu": "NVIDIA H200", "driver": "580.159.03", "gpu_state": STATE}
    rows = [Row("condensenet-74-g8", 274_000_000, 2_940_000, None, 29.0, []), Row("a.onnx", None, None, "ab" * 32, None, [])]
    for number, row in enumerate(rows, 1):
        row.results = [
            result(
                [0.002 * number / part] * 40, [0.002 * number / part] * 40, label=row.label, backend=backend, batch=batch, device="cuda",
                device_rounds=[0.0015 * number / part] * 2, transfer_rounds=[0.0001 * batch] * 2,
            )
            for batch in (1, 8)
            for part, backend in enumerate(("torch", "torch.cudagraph.fp16", "tensorrt.tf32"), 1)
        ]  # fmt: skip
    failed = rows[1].results[2]
    rows[1].results[2] = Result(failed.cell, error="needs a <b>GPU</b>", exit_code=5)
    values: dict[str, Any] = {"rows": rows, "settings": Settings(rounds=2), "environment": machine, "after": machine}
    return Report(**{**values, **changes})

"""What every attack needs: a small valid checkpoint to spoil, and the claim that the command line refused it."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from cnet_deploy.checkpoints.load import load
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build, build_random
from cnet_deploy.models.condensenet import initialise

from .words import require_plain

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "examples" / "reference-cifar10.pth.tar"
LAYER = "features.denseblock_1.denselayer_1.conv_1"
STEM = "features.init_conv.weight"
ARCHITECTURE = Architecture(
    (1, 1, 1), (4, 4, 4), group_1x1=2, group_3x3=2, condense_factor=2, classes=10, stem_stride=1, input_size=(32, 32)
)
MESSAGE_LIMIT = 1000  # characters that a person will still read as one line
State = dict[str, torch.Tensor]


class Blocked(BaseException):
    """The command waited for a file that never ends. No Exception, so that nothing swallows it."""


@functools.cache
def _training() -> State:
    model = build(ARCHITECTURE, "training")
    initialise(model, 0)
    state = model.state_dict()
    for conv in ARCHITECTURE.pointwise_convs():
        rows, columns = torch.arange(conv.out_channels)[:, None], torch.arange(conv.in_channels)
        state[f"{conv.name}._mask"] = (rows % 2 == columns % 2).float()[:, :, None, None]
        state[f"{conv.name}._stage"] = torch.tensor([1.0])
        state[f"{conv.name}._count"] = torch.tensor([conv.in_channels / 2])
    return state


@functools.cache
def _group_conv() -> State:
    return build_random(ARCHITECTURE).state_dict()


def training_state(**changes: Any) -> dict[str, Any]:
    """A finished training checkpoint's tensors; ``changes`` by name."""
    return {name: value.clone() for name, value in _training().items()} | changes


def group_conv_state(**changes: Any) -> dict[str, Any]:
    """The same network's size in group-conv form."""
    return {name: value.clone() for name, value in _group_conv().items()} | changes


def saved(value: Any, *, legacy: bool = False) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def written(folder: Path, content: Any, name: str = "checkpoint.pth.tar") -> Path:
    """A file of these bytes, or of what torch.save makes of anything else."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else saved(content))
    return path


def refused(*arguments: Path | str, file: Path | None = None, says: tuple[str, ...] = (), seconds: float = 10) -> str:
    """Run the command line and require exit code 4, one harmless line on stderr that names ``file``, and nothing written beside it.

    ``file`` is the first path in ``arguments`` unless given; ``says`` must stand in the line.
    """
    file = file or next(argument for argument in arguments if isinstance(argument, Path))
    before = _snapshot(file.parent)
    with within(seconds):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], color=True)  # as on a terminal
    if result.exception and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"a {type(result.exception).__name__} escaped: {str(result.exception)[:300]}") from None
    assert result.exit_code == 4, (result.exit_code, result.stderr[:300])
    assert result.stdout == ""
    assert _snapshot(file.parent) == before, "something was written"
    line = one_line(result.stderr)
    assert file.name in line, f"{file.name} is not named in: {line[:300]}"
    for words in says:
        assert words in line, f"{words!r} is not in: {line[:300]}"
    return line


def refused_checkpoint(path: Path, *says: str) -> str:
    """``convert`` refuses a checkpoint."""
    return refused("convert", path, says=says)


def one_line(text: str) -> str:
    """The single line of an error, free of control characters and short enough to be read."""
    assert text.endswith("\n"), text[:300]
    line = text[:-1]
    assert line.isprintable(), f"control characters in {line[:300]!r}"
    assert line.startswith("Error: "), line[:300]
    assert len(line) <= MESSAGE_LIMIT, f"{len(line)} characters: {line[:300]}"
    require_plain(line)
    return line


def loads_or_refused(path: Path) -> bool:
    """Whether a damaged file still loads; any exception but InputRefused fails, and so does a model that isn't whole."""
    try:
        model = load(path)
    except InputRefused:
        return False
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())
    return True


def run_apart(*arguments: Path | str, memory: int | None = None, seconds: float = 30) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, for what may kill or block it; ``memory`` bounds its address space."""

    def limit() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.run(
        [sys.executable, "-m", "cnet_deploy", *map(os.fspath, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True, text=True, errors="surrogateescape", timeout=seconds, check=False, preexec_fn=limit,
    )  # fmt: skip


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Blocked where the block takes longer."""

    def stop(*_: object) -> None:
        raise Blocked(f"still waiting after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Type, permissions and content of everything in a folder; pipes and devices are not opened."""
    return {
        entry.name: (entry.lstat().st_mode, entry.read_bytes() if entry.is_file() and entry.stat().st_size < 1 << 24 else b"")
        for entry in folder.iterdir()
    }

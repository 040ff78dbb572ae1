"""Measure one cell in a separate process, controlled by lines of JSON on standard input.

Between commands the process is blocked on the pipe, so that it does not disturb other measurements. The gate runs this file with the Python
of another installation, possibly of another version. It is therefore a standalone script that uses only ``open_session``, ``open_named``
and the errors of ``cnet_deploy``.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

NAMED = "name:"  # prefix of a cell's model if it is the name of a network instead of a file
BROKEN = 5  # the exit code of exceptions that have none

Answer = dict[str, Any]


def main() -> None:
    """Answer each line of JSON with a line of JSON until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    cell: OpenCell | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if cell is None:
                cell = OpenCell(**command)
                _answer(answers, cell.opened)
            else:
                _answer(answers, cell.measure(**command))
        except Exception as error:  # the parent reports it and goes on with the other cells
            code = getattr(error, "exit_code", None)
            _answer(answers, {"error": str(error) if code else f"{type(error).__name__}: {error}", "exit_code": code or BROKEN})


class OpenCell:
    """A session with a bound batch that has run once. ``opened`` has the times of that and the installation."""

    def __init__(self, model: str, backend: str, threads: int, batch: int, options: Answer, device: str = "cpu") -> None:
        import numpy as np

        import cnet_deploy

        start = time.perf_counter()
        self.session = _open(model, backend, threads, device, options)
        opened = time.perf_counter() - start
        fixed, *shape = self.session.input_shape
        if fixed and batch not in (1, fixed):
            raise _refusal(f"its batch is fixed at {fixed}, so {batch} can't be measured; export it with a free batch")
        self.batch, self.device = fixed or batch, device
        images = np.random.default_rng(0).standard_normal((self.batch, *shape), np.float32)
        self.binding = self.session.bind(images)
        self.binding.upload()
        (first,) = self._repeat(0.0, 1)
        self.opened = {
            "open_seconds": opened,
            "first_seconds": first,
            "first_at": time.monotonic(),
            "batch": self.batch,
            "shape": list(shape),
            "classes": self.session.classes,
            "installation": str(Path(cnet_deploy.__file__).resolve().parent),
            "version": cnet_deploy.__version__,
        }

    def measure(self, warmup: float, seconds: float, least: int) -> Answer:
        """Seconds of each inference during ``seconds``, at least ``least`` of them; those during ``warmup`` seconds before are separate.

        On a GPU also the inference time by the device's clock, and the times to upload the batch and to download the logits.
        """
        warm = self._repeat(warmup, 1) if warmup > 0 else []
        samples = self._repeat(seconds, least)
        return {"warmup": warm, "samples": samples, "peak_bytes": peak_bytes(), **self._on_the_device(len(samples))}

    def _repeat(self, seconds: float, least: int) -> list[float]:
        clock, enqueue, wait = time.perf_counter, self.binding.enqueue, self.binding.wait
        samples: list[float] = []
        now = clock()
        end = now + seconds
        while now < end or len(samples) < least:
            start = clock()
            enqueue()
            wait()
            now = clock()
            samples.append(now - start)
        return [max(round(sample, 9), 1e-9) for sample in samples]  # a coarse clock may not have moved

    def _on_the_device(self, count: int) -> Answer:
        if (device := self.binding.device_seconds(count)) is None:
            return {}
        start = time.perf_counter()
        self.binding.upload()
        self.binding.wait()
        middle = time.perf_counter()
        self.binding.download()
        self.binding.wait()
        return {
            "device_seconds": device / count,
            "upload_seconds": middle - start,
            "download_seconds": time.perf_counter() - middle,
        }


def peak_bytes() -> int | None:
    """The peak memory of this process in bytes; None if the system does not report it.

    ``getrusage`` is not used because it includes the memory of the parent process.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _open(model: str, backend: str, threads: int, device: str, options: Answer) -> Any:
    if model.startswith(NAMED):
        from cnet_deploy.sessions.torch import open_named

        # Older revisions run on the CPU only and don't have the keyword.
        where: Answer = {} if device == "cpu" else {"device": device}
        return open_named(model.removeprefix(NAMED), threads=threads, **where, **options)
    from cnet_deploy.sessions import open_session

    # Whether a stranger's graph ends at all was tried before, by the parent. Older revisions don't try.
    trusting: Answer = {"timeout": None} if "timeout" in inspect.signature(open_session).parameters else {}
    return open_session(model, backend=backend, device=device, threads=threads, **trusting, **options)


def _refusal(message: str) -> Exception:
    from cnet_deploy.errors import InputRefused

    return InputRefused(message)


def _answer(stream: IO[str], answer: Answer) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    # Python puts the script's folder first on the path, where its modules would hide others of the same names.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    main()

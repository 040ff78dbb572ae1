"""One cell in a process of its own, driven by lines of JSON on its standard input: the measuring instrument.

Between commands it is blocked on the pipe, so that it takes nothing from the process that measures. The gate runs this very file with the
Python of another installation, perhaps of another version: so it is a script that stands alone, and asks of ``cnet_deploy`` no more
than ``open_session``, ``open_named`` and the errors.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

NAMED = "name:"  # before the name of a network, where a cell's model is no file
BROKEN = 5  # the exit code for what no error class speaks for

Answer = dict[str, Any]


def main() -> None:
    """Answer one line of JSON per line of JSON until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    cell: OpenCell | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if cell is None:
                cell = OpenCell(**command)
                _answer(answers, cell.opened)
            else:
                _answer(answers, cell.measure(**command))
        # A cell that fails is a figure that is missing, never the end of the run: the parent shows what it was.
        except Exception as error:
            code = getattr(error, "exit_code", None)
            _answer(answers, {"error": str(error) if code else f"{type(error).__name__}: {error}", "exit_code": code or BROKEN})


class OpenCell:
    """A session with a batch bound to it, which has run once. ``opened`` tells what that took and who did it."""

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
            "installation": str(Path(cnet_deploy.__file__).resolve().parent),
            "version": cnet_deploy.__version__,
        }

    def measure(self, warmup: float, seconds: float, least: int) -> Answer:
        """Seconds of each inference for ``seconds``, at least ``least`` of them; those of the ``warmup`` seconds before stand apart.

        On a device also what an inference takes by the device's own clock, and what the batch takes there and the logits back.
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
        return [round(sample, 9) for sample in samples]

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
    """The most memory that this process has held at once; None where the system does not tell.

    Not ``getrusage``, which counts the memory of the process that started this one too.
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

        # Revisions that know no other device don't know the word either.
        where: Answer = {} if device == "cpu" else {"device": device}
        return open_named(model.removeprefix(NAMED), threads=threads, **where, **options)
    from cnet_deploy.sessions import open_session

    return open_session(model, backend=backend, device=device, threads=threads, **options)


def _refusal(message: str) -> Exception:
    from cnet_deploy.errors import InputRefused

    return InputRefused(message)


def _answer(stream: IO[str], answer: Answer) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    # A script finds its own folder first on the path, and there modules that are not meant to be found by these names.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    main()

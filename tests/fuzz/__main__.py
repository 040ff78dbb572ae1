"""``python -m tests.fuzz TARGET [libFuzzer's flags and folders]``: inputs for one target, as atheris finds them. Exit code 77 is a find."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cnet_deploy"], enable_loader_override=False):
    from tests.fuzz import mutators, targets

    targets.prepare(sys.argv[1] if len(sys.argv) > 1 else "")


def main() -> None:
    target = sys.argv.pop(1)
    if target not in targets.TARGETS:
        sys.exit(f"no target is called {target}; expected one of {', '.join(targets.TARGETS)}")
    memory = "/dev/shm"  # writing a file for each input to a disk takes longer than reading it
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as folder:
        path = Path(folder) / targets.NAMES[target]

        def try_one(data: bytes) -> None:
            if data:
                targets.try_one(target, path, data)

        def mutate(data: bytes, limit: int, seed: int) -> bytes:
            return mutators.mutate(target, data, limit, seed, atheris.Mutate)

        atheris.Setup(sys.argv, try_one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""How long a measurement will take, told before it begins."""

from __future__ import annotations

from cnet_deploy.benchmarks.measure.cells import SETTLE_SECONDS
from cnet_deploy.benchmarks.measure.rounds import Settings

EXPORTING = 6.0  # seconds, of an artifact: to write or compile, and to verify it
_CALIBRATING = 4e9  # operations in a second, while ranges are taken
OPENING = 1.5  # seconds, of a process: Python, the runtime, the model, the first inference


def estimate(cells: int, settings: Settings, done: int = 0) -> float:
    """Seconds that so many cells take with these settings; ``done`` rounds were measured before. Inferences that take longer than a turn
    are not counted in.

    >>> round(estimate(3, Settings(rounds=10, seconds=0.2, warmup=0.5, rewarm=0.1)))
    19
    """
    rounds = max(0, settings.rounds - done)
    if rounds == 0:
        return 0.0
    if settings.fresh:
        return cells * rounds * (SETTLE_SECONDS + OPENING + settings.warmup + settings.seconds)
    once = OPENING + 2 * SETTLE_SECONDS + settings.warmup
    return cells * (once + rounds * (SETTLE_SECONDS + settings.rewarm + settings.seconds))


def calibrating(images: int, flops: int | None) -> float:
    """Seconds that it takes to calibrate a network of so many ``flops``.

    >>> calibrating(256, 529_000_000)
    33.856
    """
    return images * (flops or 0) / _CALIBRATING


def turns(count: int, opening: float, settings: Settings) -> float:
    """Seconds that so many turns take, each in a process of its own that needs ``opening`` seconds to its first result.

    >>> turns(32, 0.38, Settings(warmup=0.5, seconds=0.5))
    48.0
    """
    return count * (SETTLE_SECONDS + opening + settings.warmup + settings.seconds)


def in_words(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [in_words(seconds) for seconds in (0.4, 42, 95, 600, 7300)]
    ['5 seconds', '40 seconds', '2 minutes', '10 minutes', '2 hours']
    """
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} seconds"
    if seconds < 5400:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    return f"{round(seconds / 3600)} hours"

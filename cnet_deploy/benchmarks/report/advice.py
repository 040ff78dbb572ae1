"""What stands between a report's figures and trust in them, each with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from cnet_deploy.benchmarks.measure.environment import stolen
from cnet_deploy.benchmarks.sweep.results import Report
from cnet_deploy.hardware.nvml import slowdowns
from cnet_deploy.text import printable

BUSY = 0.3  # load average per core before the run, above which others are at work
STOLEN = 0.01
FLOATING = 0.03  # how far clocks may be apart before that explains what is seen


def warnings_of(report: Report) -> list[str]:
    """Sentences for people: what was found, and what to do. Empty where nothing is in the way."""
    return [*_clocks(report), *_gpu(report), *_neighbours(report), *_threads(report), *_samples(report)]


def _clocks(report: Report) -> list[str]:
    here, advice = report.environment, []
    if here["governor"] not in (None, "performance"):
        advice.append(
            f"The CPU governor is '{here['governor']}', which changes clocks while one measures: "
            "set it to performance (sudo cpupower frequency-set -g performance)."
        )
    if here["turbo"]:
        advice.append(
            "Turbo is on, so clocks depend on temperature and on what the other cores do: turn it off to compare "
            "(echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost, or no_turbo = 1 with intel_pstate)."
        )
    if here["governor"] is None and here["virtual"]:
        advice.append(
            "This is a virtual machine: governor, turbo and the true clocks can't be seen. "
            "Trust ratios within this run, and measure on the machine that you deploy to for times."
        )
    clocks = [clock for state in (here, report.after or {}) for clock in state.get("clock_mhz") or ()]
    return advice + _floating("Clocks float", clocks, "fix the frequency (sudo cpupower frequency-set -d F -u F)")


def _gpu(report: Report) -> list[str]:
    if report.device == "cpu":
        return []
    here, after, advice = report.environment["gpu_state"], report.after and report.after["gpu_state"], []
    if here is None:
        return [
            "The GPU's clocks and slowdowns could not be read: install what reads them (pip install nvidia-ml-py), in a container also let "
            "the driver's library in (NVIDIA_DRIVER_CAPABILITIES=compute,utility), or compare ratios only."
        ]
    if slowed := slowdowns(here, after):
        reasons = ", ".join(printable(name) + ("" if seconds is None else f" for {seconds:.1f} s") for name, seconds in slowed.items())
        advice.append(
            f"The GPU held its clocks down ({reasons}): cool it or raise its power limit (nvidia-smi -q -d TEMPERATURE,POWER), "
            "or lock a clock that it can keep (sudo nvidia-smi -lgc F), and measure again."
        )
    if here["persistence"] == "Disabled":
        advice.append(
            "The GPU's persistence mode is off, so the driver may put it to sleep between processes: turn it on (sudo nvidia-smi -pm 1)."
        )
    clocks = [state["sm_mhz"] for state in (here, after or {}) if state.get("sm_mhz") and "idle" not in (state["reasons"] or ())]
    return advice + _floating("The GPU's clock floats", clocks, "lock it (sudo nvidia-smi -lgc F)")


def _floating(what: str, clocks: Sequence[float], remedy: str) -> list[str]:
    """The advice on clocks in MHz that differ; none where they don't."""
    if not clocks or max(clocks) <= min(clocks) * (1 + FLOATING):
        return []
    return [f"{what}: {min(clocks):.0f} to {max(clocks):.0f} MHz were seen before and after the run: {remedy}, or compare ratios only."]


def _neighbours(report: Report) -> list[str]:
    here, advice = report.environment, []
    load = (here["load_average"] or [0.0])[0]
    if load > BUSY * here["cores"]:
        advice.append(
            f"The load average was {load:.1f} on {here['cores']} cores before the run began: stop what else runs, then measure again."
        )
    taken = stolen(here, report.after) if report.after else None
    if taken is not None and taken > STOLEN:
        advice.append(
            f"The hypervisor gave {taken:.1%} of the cores' time to other machines during the run: "
            "use a machine with cores of its own, or more rounds (--rounds)."
        )
    return advice


def _threads(report: Report) -> list[str]:
    here, advice = report.environment, []
    if report.device != "cpu":
        return []  # they only start what the device does
    most = max(threads for threads, _ in report.groups)
    if most > here["cores"]:
        advice.append(f"{most} threads share {here['cores']} cores: ask for no more threads than cores (--threads {here['cores']}).")
    elif most < here["cores"] and here["cores"] == here["machine_cores"]:
        advice.append(
            f"Threads are not pinned: {most} of them may wander over {here['cores']} cores. Pin the run: "
            f"put taskset -c 0-{most - 1} before the command."
        )
    return advice


def _samples(report: Report) -> list[str]:
    advice = []
    unstable = [(row, result) for row in report.rows for result in row.results if (known := result.summary) and known.unstable]
    if unstable:
        row, worst = max(unstable, key=lambda pair: pair[1].summary.variation if pair[1].summary else 0.0)
        assert worst.summary is not None
        advice.append(
            f"{len(unstable)} of {sum(1 for result in report.results if result.rounds)} cells are unstable (coefficient of variation above "
            f"2.5 %; the worst is {printable(row.title)} on {worst.cell.backend} with {worst.summary.variation:.0%}): "
            "read medians and ratios, and give the run more rounds (--rounds) on a quieter machine."
        )
    failed = sum(result.error is not None for result in report.results)
    if failed:
        advice.append(
            f"{failed} cell{'s' * (failed > 1)} failed, with the reason in place of a time: the reasons say what to install or change."
        )
    if report.after is None:
        advice.append("The run was interrupted and holds a part of its rounds: finish it with the same command and --resume.")
    return advice

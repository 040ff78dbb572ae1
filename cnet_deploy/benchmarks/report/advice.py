"""What stands between a report's figures and trust in them, each with what to do about it."""

from __future__ import annotations

from cnet_deploy.benchmarks.measure.environment import stolen
from cnet_deploy.benchmarks.sweep.results import Report
from cnet_deploy.errors import printable
from cnet_deploy.hardware.nvml import slowdowns

BUSY = 0.3  # load average per core before the run, above which others are at work
STOLEN = 0.01
FLOATING = 0.03  # how far clocks may be apart before that explains what is seen


def warnings_of(report: Report) -> list[str]:
    """Sentences for people: what was found, and what to do. Empty where nothing is in the way."""
    return [*_clocks(report), *_gpu(report), *_neighbours(report), *_threads(report), *_samples(report)]


def _clocks(report: Report) -> list[str]:
    here, found = report.environment, []
    if here["governor"] not in (None, "performance"):
        found.append(
            f"The CPU governor is '{here['governor']}', which changes clocks while one measures: "
            "set it to performance (sudo cpupower frequency-set -g performance)."
        )
    if here["turbo"]:
        found.append(
            "Turbo is on, so clocks depend on temperature and on what the other cores do: turn it off to compare "
            "(echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost, or no_turbo = 1 with intel_pstate)."
        )
    if here["governor"] is None and here["virtual"]:
        found.append(
            "This is a virtual machine: governor, turbo and the true clocks can't be seen. "
            "Trust ratios within this run, and measure on the machine that you deploy to for times."
        )
    clocks = [clock for state in (here, report.after or {}) for clock in state.get("clock_mhz") or ()]
    if clocks and max(clocks) > min(clocks) * (1 + FLOATING):
        found.append(
            f"Clocks float: {min(clocks):.0f} to {max(clocks):.0f} MHz were seen before and after the run. Fix the frequency "
            "(sudo cpupower frequency-set -d F -u F), or compare ratios only."
        )
    return found


def _gpu(report: Report) -> list[str]:
    if report.device == "cpu":
        return []
    here, after, found = report.environment["gpu_state"], report.after and report.after["gpu_state"], []
    if here is None:
        return [
            "The GPU's clocks and slowdowns could not be read: install what reads them (pip install nvidia-ml-py), in a container also let "
            "the driver's library in (NVIDIA_DRIVER_CAPABILITIES=compute,utility), or compare ratios only."
        ]
    if slowed := slowdowns(here, after):
        reasons = ", ".join(printable(name) + ("" if seconds is None else f" for {seconds:.1f} s") for name, seconds in slowed.items())
        found.append(
            f"The GPU held its clocks down ({reasons}): cool it or raise its power limit (nvidia-smi -q -d TEMPERATURE,POWER), "
            "or lock a clock that it can keep (sudo nvidia-smi -lgc F), and measure again."
        )
    if here["persistence"] == "Disabled":
        found.append(
            "The GPU's persistence mode is off, so the driver may put it to sleep between processes: turn it on (sudo nvidia-smi -pm 1)."
        )
    clocks = [state["sm_mhz"] for state in (here, after or {}) if state.get("sm_mhz") and "idle" not in (state["reasons"] or ())]
    if clocks and max(clocks) > min(clocks) * (1 + FLOATING):
        found.append(
            f"The GPU's clock floats: {min(clocks):.0f} and {max(clocks):.0f} MHz were seen before and after the run: lock it "
            "(sudo nvidia-smi -lgc F), or compare ratios only."
        )
    return found


def _neighbours(report: Report) -> list[str]:
    here, found = report.environment, []
    load = (here["load_average"] or [0.0])[0]
    if load > BUSY * here["cores"]:
        found.append(
            f"The load average was {load:.1f} on {here['cores']} cores before the run began: stop what else runs, then measure again."
        )
    taken = stolen(here, report.after) if report.after else None
    if taken is not None and taken > STOLEN:
        found.append(
            f"The hypervisor gave {taken:.1%} of the cores' time to other machines during the run: "
            "use a machine with cores of its own, or more rounds (--rounds)."
        )
    return found


def _threads(report: Report) -> list[str]:
    here, found = report.environment, []
    if report.device != "cpu":
        return []  # they only start what the device does
    most = max(threads for threads, _ in report.groups)
    if most > here["cores"]:
        found.append(f"{most} threads share {here['cores']} cores: ask for no more threads than cores (--threads {here['cores']}).")
    elif most < here["cores"] and here["cores"] == here["machine_cores"]:
        found.append(
            f"Threads are not pinned: {most} of them may wander over {here['cores']} cores. Pin the run: "
            f"put taskset -c 0-{most - 1} before the command."
        )
    return found


def _samples(report: Report) -> list[str]:
    found = []
    unstable = [(row, result) for row in report.rows for result in row.results if (known := result.summary) and known.unstable]
    if unstable:
        row, worst = max(unstable, key=lambda pair: pair[1].summary.variation if pair[1].summary else 0.0)
        assert worst.summary is not None
        found.append(
            f"{len(unstable)} of {sum(1 for result in report.results if result.rounds)} cells are unstable (coefficient of variation above "
            f"2.5 %; the worst is {printable(row.title)} on {worst.cell.backend} with {worst.summary.variation:.0%}): "
            "read medians and ratios, and give the run more rounds (--rounds) on a quieter machine."
        )
    failed = sum(result.error is not None for result in report.results)
    if failed:
        found.append(f"{failed} cells failed and are shown as such: the reasons say what to install or change.")
    if report.after is None:
        found.append("The run was interrupted and holds a part of its rounds: finish it with the same command and --resume.")
    return found

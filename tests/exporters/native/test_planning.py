"""planning.py: geometry and memory of what is compiled."""

from __future__ import annotations

from cnet_deploy.exporters.native import planning
from cnet_deploy.program.lower import lower
from tests.builders import TINY
from tests.exporters.native.helpers import every_kernel, network, plan_of


def test_one_plan_gives_the_same_words() -> None:
    first, second = (plan_of(every_kernel(), ("avx2", "baseline")) for _ in range(2))
    assert first == second and first.layouts == ("wide", "wide", "narrow")


def test_the_source_tells_weights_apart() -> None:
    """Compilers that keep results (zig, ccache) look at the source, not at the file that it includes."""
    one, other = (plan_of(network(TINY, seed), ("baseline",)) for seed in (0, 1))
    assert one.weights != other.weights and one.source != other.source


def test_descriptions_survive_in_c() -> None:
    program = lower(every_kernel())
    nasty = '"quotes" \\ ?? %s \u00e9 \n end'
    source = planning.make_plan(program, precision="fp32", description=nasty, isas=("baseline",)).source
    text = "".join(line.strip().strip('"') for line in source.split("description[] =")[1].split(";")[0].splitlines())
    assert text.encode().decode("unicode_escape").encode("latin-1").decode() == nasty

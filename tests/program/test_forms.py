"""rewriting.py: the same function by other means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.models.build import build_random
from cnet_deploy.program.forms import FORMS, blocks, dense_pointwise, rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer, Excite, Hidden, Program, Transition
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2, VARIETIES, VARIETIES_V2, noise, tiny
from tests.cases import few

NARROW = tiny(8, 8, group_3x3=8, bottleneck=2)  # a 3x3's group reads of some of the 1x1's groups alone, as in condensenet-74-g8
ALL = [
    NARROW, *VARIETIES, tiny(group_3x3=1), tiny(group_3x3=2), tiny(8, 4, group_3x3=2), replace(TINY_LGC, group_3x3=1),
    replace(TINY_LGC, group_1x1=2, condense_factor=4, classifier_keep=0.5), replace(TINY_DENSENET, group_3x3=1),
]  # fmt: skip
V2 = [TINY_V2, *VARIETIES_V2[1:], replace(TINY_V2, group_3x3=1), replace(TINY_V2, group_1x1=8, group_3x3=2)]
every = pytest.mark.parametrize("arch", [*few(ALL, 6), *few(V2, 2)], ids=lambda arch: arch.summary())


def gathers(program: Program, what: str) -> list[str]:
    """The nodes that gather channels ("index") or reorder them ("order")."""
    nodes = build_graph(program).graph.node
    return [node.name.removesuffix(".gather") for node in nodes if node.op_type == "Gather" and node.name.endswith(f".{what}.gather")]


def differ(program: Program, other: Program, batch: int = 2) -> float:
    """The largest difference in float64, of the largest logit."""
    images = np.random.default_rng(1).standard_normal((batch, *program.architecture.image_shape))
    expected = program.run(images)
    return float(np.abs(other.run(images) - expected).max() / np.abs(expected).max())


def weights(program: Program) -> list[int]:
    """Weights of each layer, by which its multiply-adds are counted: a weight does one for each pixel."""
    return [
        (0 if layer.pointwise is None else layer.pointwise.weight.size) + (layer.weight.size if isinstance(layer, DenseLayer) else 0)
        for layer in program.body
    ]


@every
def test_dense_pointwise_computes_the_same(arch: cd.Architecture) -> None:
    model = build_random(arch)
    program = lower(model)
    batch = noise(model).astype(np.float64)
    expected = program.run(batch)
    assert np.abs(dense_pointwise(program).run(batch) - expected).max() <= 1e-12 * np.abs(expected).max()


@every
@pytest.mark.parametrize("form", FORMS)
def test_a_form_computes_the_same(arch: cd.Architecture, form: str) -> None:
    program = lower(build_random(arch))
    assert differ(program, rewrite(program, form)) <= 1e-12


@every
@pytest.mark.parametrize(
    "forms", [("absorbed", "gather", "dense"), ("absorbed", "dense", "gather"), ("dense", "absorbed", "absorbed"), ("gather",) * 2]
)
def test_a_mixture_computes_the_same(arch: cd.Architecture, forms: tuple[str, ...]) -> None:
    program = lower(build_random(arch))
    assert differ(program, rewrite(program, dict(zip(blocks(program), forms, strict=False)))) <= 1e-12


def _even(rows: int, groups: int) -> bool:
    """Whether the groups of a 1x1 have equal shares in the rows that a group of the 3x3 reads, or each group one or none."""
    return rows % groups == 0 or groups % rows == 0


@every
def test_absorbed_reorders_nothing_and_multiplies_no_more(arch: cd.Architecture) -> None:
    program = lower(build_random(arch))
    found = rewrite(program, "absorbed")
    if all(_even(arch.bottleneck * growth // arch.group_3x3, arch.group_1x1) for growth in arch.growth):
        assert gathers(found, "order") == []
    assert "classifier.index" not in gathers(found, "index")
    assert weights(found) == weights(program)
    assert set(gathers(found, "index")) <= set(gathers(program, "index"))  # none where none was
    for layer, old in zip(found.body, program.body, strict=True):
        if layer.pointwise is not None and old.pointwise is not None:
            times = layer.groups if isinstance(layer, DenseLayer) else 1
            assert layer.pointwise.index.size <= times * old.pointwise.index.size


@every
def test_dense_gathers_nothing(arch: cd.Architecture) -> None:
    program = rewrite(lower(build_random(arch)), "dense")
    assert not [node.name for node in build_graph(program).graph.node if node.op_type == "Gather"]


@pytest.mark.parametrize("arch", [TINY, TINY_LGC])
def test_a_block_alone_is_changed_with_its_transition_and_classifier(arch: cd.Architecture) -> None:
    program = lower(build_random(arch))
    assert blocks(program) == ("denseblock_1", "denseblock_2", "denseblock_3")
    found = rewrite(program, {"denseblock_1": "absorbed"})
    reordered = set(gathers(program, "order")) - set(gathers(found, "order"))
    assert reordered == {name for name in gathers(program, "order") if "denseblock_1." in name or "transition_1." in name}
    assert reordered and gathers(found, "index") == gathers(program, "index")
    halved = lower(build_random(replace(arch, classifier_keep=0.5)))
    assert "classifier.index" in gathers(rewrite(halved, {"denseblock_1": "dense"}), "index")
    assert "classifier.index" not in gathers(rewrite(halved, {"denseblock_3": "dense"}), "index")


@pytest.mark.parametrize("form", FORMS)
def test_what_condensenet_v2_has_beyond_the_others_stays(form: str) -> None:
    program = lower(build_random(replace(TINY_V2, excitation_from=1)))
    found = rewrite(program, form)
    assert np.array_equal(found.pool.scale, program.pool.scale) and found.hidden is program.hidden is not None
    assert found.head.features == TINY_V2.hidden_channels and np.array_equal(found.head.weight, program.head.weight)
    for layer, old in zip(found.body, program.body, strict=True):
        if isinstance(layer, DenseLayer) and isinstance(old, DenseLayer):
            assert layer.update is old.update and layer.excite is old.excite and layer.activation == old.activation
            assert layer.update is not None and layer.excite is not None


def test_gather_is_the_program_itself() -> None:
    program = lower(build_random(TINY))
    assert rewrite(program, "gather") is program and rewrite(program, {}) is program


def test_without_grouped_3x3_absorbing_gathers_no_more() -> None:
    program = lower(build_random(tiny(group_3x3=1)))
    for layer, old in zip(rewrite(program, "absorbed").body, program.body, strict=True):
        if layer.pointwise is not None and old.pointwise is not None:
            assert np.array_equal(layer.pointwise.index, old.pointwise.index)


def shuffled(program: Program, number: int) -> Program:
    """With the reorder of a layer at random."""
    layer = program.body[number]
    assert layer.pointwise is not None
    order = np.random.default_rng(0).permutation(layer.pointwise.order.size)
    body = list(program.body)
    body[number] = replace(layer, pointwise=replace(layer.pointwise, order=order))
    return replace(program, body=tuple(body))


def test_a_reorder_that_would_make_the_gather_too_large_is_left() -> None:
    program = shuffled(lower(build_random(TINY)), 0)
    found = rewrite(program, "absorbed")
    assert gathers(found, "order") == [f"{program.body[0].name}.conv_1.order"]
    assert differ(program, found) <= 1e-12


def test_rows_are_put_in_order_within_a_group() -> None:
    program = shuffled(lower(build_random(tiny(1, 4))), 0)
    found = rewrite(program, "absorbed")
    assert gathers(program, "order") and not gathers(found, "order") and gathers(program, "index") == gathers(found, "index")
    assert differ(program, found) <= 1e-12


@pytest.mark.parametrize(("groups", "hidden", "left"), [(1, False, False), (4, False, True), (1, True, True)])
def test_a_transition_is_left_reordered_where_layers_behind_it_would_have_to_gather(groups: int, hidden: bool, left: bool) -> None:
    program = lower(build_random(replace(TINY_DENSENET, group_1x1=groups)))
    number = next(n for n, layer in enumerate(program.body) if isinstance(layer, Transition))
    if groups == 1:  # of one group, rows are put in order; so two groups, and all behind it one
        layer = program.body[number]
        assert layer.pointwise is not None
        width = layer.pointwise.index.size
        halves = replace(layer.pointwise, weight=layer.pointwise.weight[:, : width // 2], groups=2)
        body = list(program.body)
        body[number] = replace(layer, pointwise=halves)
        program = replace(program, body=tuple(body))
    program = shuffled(program, number)
    if hidden:  # whose matrices name channels: none of the networks has both
        random, features = np.random.default_rng(0), program.head.features
        narrow, square = (random.standard_normal((rows, features), np.float32) for rows in (3, features))
        program = replace(program, hidden=Hidden("fc", Excite("features.se_last", narrow, narrow.T), square, square[0]))
    found = rewrite(program, "absorbed")
    assert bool(gathers(found, "order")) is left and gathers(found, "index") == []
    assert differ(program, found) <= 1e-12


def test_the_last_map_keeps_its_norm_where_channels_moved() -> None:
    # No layer stands behind the last transition but the pool and the classifier, which must follow it.
    program = lower(build_random(replace(TINY_LGC, classifier_keep=0.5)))
    body = program.body[: max(n for n, layer in enumerate(program.body) if isinstance(layer, Transition)) + 1]
    last = body[-1].pointwise
    assert last is not None
    kept = last.order.size
    index = program.head.index[program.head.index < kept]
    pool = replace(program.pool, scale=program.pool.scale[:kept], shift=program.pool.shift[:kept])
    head = replace(program.head, features=kept, index=index, weight=program.head.weight[:, : index.size])
    short = replace(program, body=body, pool=pool, head=head)
    found = rewrite(short, {"denseblock_2": "absorbed"})
    assert differ(short, found) <= 1e-12 and not np.array_equal(found.pool.scale, pool.scale)


def test_what_is_unknown_is_refused() -> None:
    program = lower(build_random(TINY))
    with pytest.raises(InputRefused, match="unknown form 'fast' of a block; expected one of gather, dense, absorbed"):
        rewrite(program, "fast")
    with pytest.raises(InputRefused, match="unknown form 'fast' of a block"):
        rewrite(program, {"denseblock_1": "fast"})
    with pytest.raises(InputRefused, match="no dense block is called 'denseblock_9'; expected some of denseblock_1, denseblock_2"):
        rewrite(program, {"denseblock_9": "dense"})


def test_nothing_is_gathered_but_the_classifiers_inputs() -> None:
    graph = build_graph(dense_pointwise(lower(build_random(replace(TINY, classifier_keep=0.5))))).graph
    assert [node.name for node in graph.node if node.op_type == "Gather"] == ["classifier.index.gather"]


def test_a_channel_with_two_norms_is_still_gathered() -> None:
    model = build_random(TINY)
    program = lower(model)
    first = program.body[0]
    assert isinstance(first, DenseLayer)
    scale = np.random.default_rng(0).uniform(0.5, 1.5, first.pointwise.scale.size).astype(np.float32)
    index = np.zeros_like(first.pointwise.index)
    layer = replace(first, pointwise=replace(first.pointwise, scale=scale, index=index))
    program = replace(program, body=(layer, *program.body[1:]))
    assert differ(program, dense_pointwise(program)) <= 1e-12
    assert differ(program, rewrite(program, "absorbed")) <= 1e-12

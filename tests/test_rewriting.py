"""rewriting.py: the same function by other means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.lowering import lower
from cnet_deploy.models import build_random
from cnet_deploy.onnx_graph import build_graph
from cnet_deploy.program import DenseLayer
from cnet_deploy.rewriting import dense_pointwise
from tests.builders import TINY, VARIETIES, noise


@pytest.mark.parametrize("arch", VARIETIES, ids=lambda arch: arch.summary())
def test_dense_pointwise_computes_the_same(arch: cd.Architecture) -> None:
    model = build_random(arch)
    program = lower(model)
    batch = noise(model).astype(np.float64)
    expected = program.run(batch)
    assert np.abs(dense_pointwise(program).run(batch) - expected).max() <= 1e-12 * np.abs(expected).max()


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
    batch = noise(model).astype(np.float64)
    expected = program.run(batch)
    rewritten = dense_pointwise(program)
    assert np.abs(rewritten.run(batch) - expected).max() <= 1e-12 * np.abs(expected).max()

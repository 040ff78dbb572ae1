"""The picture shows what each group reads, in either form, and as far as pruning came."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.models.architecture import NAMED
from cnet_deploy.svg import COLOURS
from cnet_deploy.workflows.plot_groups import LEAST, LEFT, MAX_DASHES, RIGHT, ROW, Connections, connections, draw, plot, steps
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2, save_checkpoint, state_dict, training_model
from tests.pictures import Picture


def test_both_forms_read_the_same(checkpoint_path: Path, tmp_path: Path) -> None:
    cd.save(cd.convert(cd.load(checkpoint_path)), tmp_path / "m.safetensors")
    one, other = (list(connections(read_tensors(path), {})) for path in (checkpoint_path, tmp_path / "m.safetensors"))
    assert [layer.name for layer in one] == [layer.name for layer in other] and len(one) == 12
    assert all(np.array_equal(a.reads, b.reads) for a, b in zip(one, other, strict=True))
    assert all(layer.reads.shape[0] == 4 and (layer.reads.sum(1) * 4 == layer.reads.shape[1]).all() for layer in one)


def test_each_dash_is_a_run_of_channels(checkpoint_path: Path) -> None:
    layers = list(connections(read_tensors(checkpoint_path), {}))
    drawn = Picture(draw("name", layers))
    drawn.check()
    common = (drawn.width - LEFT - RIGHT) / max(layer.reads.shape[1] for layer in layers)
    assert min(steps(layers)) == common and max(steps(layers)) * 16 >= LEAST > 16 * common  # early layers can be seen
    scales = [step for layer, step in zip(layers, steps(layers), strict=True) for _ in layer.reads]
    background, *coloured = [line for line in drawn.lines if "stroke" in line.style]
    assert [line.style["stroke"] for line in coloured] == [*COLOURS[:4]] and float(background.style["stroke-width"]) == ROW
    heights = [piece[0][1] for piece in background.pieces]  # a line for each group
    assert heights == sorted(set(heights)) and len(heights) == 48
    rows = [reads for layer in layers for reads in layer.reads]
    assert [piece[1][0] for piece in background.pieces] == pytest.approx(
        [LEFT + len(reads) * step for reads, step in zip(rows, scales, strict=True)], abs=0.02
    )
    found = [np.zeros(len(reads), bool) for reads in rows]
    for number, line in enumerate(coloured):
        assert float(line.style["stroke-width"]) == ROW - 1
        for (start, height), (end, same) in line.pieces:
            row = heights.index(height)
            assert height == same and row % 4 == number  # its group's colour
            first, last = round((start - LEFT) / scales[row]), round((end - LEFT) / scales[row])
            assert not found[row][max(0, first - 1) : last + 1].any()  # runs are apart
            found[row][first:last] = True
    assert all(np.array_equal(one, other) for one, other in zip(found, rows, strict=True))
    assert [text for text in drawn.texts if text.startswith("group ")] == [f"group {number}" for number in range(1, 5)]
    assert "Layers that would be shorter than 240 pixels are stretched." in drawn.texts[1]


def test_the_largest_network_is_a_picture_of_its_size() -> None:
    """CondenseNet-182, with channels kept at random: a file as large as its dashes, whose parts are few."""
    arch, random = NAMED["condensenet-182"], np.random.default_rng(0)
    layers = []
    for conv in arch.pointwise_convs():
        order = random.permuted(np.tile(np.arange(conv.in_channels), (arch.group_1x1, 1)), axis=1)
        layers.append(Connections(conv.name, order < conv.in_channels // arch.condense_factor))
    text = draw("name", layers)
    dashes = sum(layer.dashes for layer in layers)
    assert 50_000 < dashes < MAX_DASHES and len(text) < 30 * dashes
    assert sum(len(line.pieces) for line in Picture(text).lines if "stroke" in line.style) == dashes


def test_a_name_is_whatever_it_is(checkpoint_path: Path, tmp_path: Path) -> None:
    name = "a\x1b[31m<script>$x$&.pth.tar"
    (tmp_path / name).write_bytes(checkpoint_path.read_bytes())
    plot(tmp_path / name, tmp_path / "g.svg")
    text = (tmp_path / "g.svg").read_text()
    assert Picture(text).texts[0] == "a\\x1b[31m<script>$x$&.pth.tar: inputs that each group reads" and "<script" not in text


def test_without_matplotlib_nothing_is_read(checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["inspect", str(checkpoint_path), "--plot", str(tmp_path / "g.svg")])
    assert done.exit_code == 5 and done.stderr.count("\n") == 1 and "pip install 'cnet-deploy[plots]'" in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(main, ["inspect", str(checkpoint_path)]).exit_code == 0


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_unfinished_pruning_is_drawn_as_far_as_it_came(tmp_path: Path, stage: int) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY_LGC, stage=stage)))
    done = CliRunner().invoke(main, ["inspect", str(path), "--plot", str(tmp_path / "g.svg")])
    assert done.exit_code == 0, done.output
    words = Picture((tmp_path / "g.svg").read_text()).texts
    assert sum(f"({(4 - stage) * 25}%)" in text for text in words) == 7  # five layers and two transitions


def test_what_can_not_be_drawn(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY_DENSENET)))
    with pytest.raises(InputRefused, match="has no learned groups to draw"):
        plot(path, tmp_path / "g.svg")
    path = save_checkpoint(tmp_path / "d.pth.tar", state_dict(training_model(TINY)))
    with pytest.raises(OutputRefused, match="is the input itself"):
        plot(path, path)
    assert not (tmp_path / "g.svg").exists()


def test_updates_are_drawn_too(tmp_path: Path) -> None:
    """Of CondenseNet V2: a line for each group of an update, in both forms the same."""
    model = training_model(TINY_V2)
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(model))
    converted = tmp_path / "m.safetensors"
    cd.save(cd.convert(cd.load(path, hs_from=2)), converted)
    drawn = {}
    for file, given in ((path, {"hs_from": 2}), (converted, {})):
        layers = list(connections(read_tensors(file), given))
        assert [layer.updates for layer in layers] == [False] * 5 + [True] * 5
        drawn[file] = {layer.name: layer.reads for layer in layers}
        plot(file, tmp_path / "groups.svg", **given)
        text = (tmp_path / "groups.svg").read_text(encoding="utf-8")
        assert "features.denseblock_1.denselayer_1.sfr: 16 of 64 outputs of groups kept (25%)" in text
    assert all(np.array_equal(drawn[path][name], drawn[converted][name]) for name in drawn[path])
    first = model.state_dict()["features.denseblock_1.denselayer_1.sfr._mask"][:, :, 0, 0].numpy()
    assert np.array_equal(drawn[path]["features.denseblock_1.denselayer_1.sfr"], first[:, :4].T == 1)

"""The picture shows what each group reads, in either form, and as far as pruning came."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.workflows.plot_groups import connections, draw, plot
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, save_checkpoint, state_dict, training_model

SVG = "{http://www.w3.org/2000/svg}"


def test_both_forms_read_the_same(checkpoint_path: Path, tmp_path: Path) -> None:
    cd.save(cd.convert(cd.load(checkpoint_path)), tmp_path / "m.safetensors")
    one, other = (list(connections(read_tensors(path), {})) for path in (checkpoint_path, tmp_path / "m.safetensors"))
    assert [layer.name for layer in one] == [layer.name for layer in other] and len(one) == 12
    assert all(np.array_equal(a.reads, b.reads) for a, b in zip(one, other, strict=True))
    assert all(layer.reads.shape[0] == 4 and (layer.reads.sum(1) * 4 == layer.reads.shape[1]).all() for layer in one)


def test_each_dash_is_a_run_of_channels(checkpoint_path: Path) -> None:
    layers = list(connections(read_tensors(checkpoint_path), {}))
    svg = Xml.fromstring(draw("name", layers))
    paths = list(svg.iter(f"{SVG}path"))
    assert len(paths) == 48
    for path, reads in zip(paths, (row for layer in layers for row in layer.reads), strict=True):
        assert path.attrib["d"].count("M") == (np.diff(np.concatenate([[0], reads.astype(int)])) == 1).sum()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_unfinished_pruning_is_drawn_as_far_as_it_came(tmp_path: Path, stage: int) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY_LGC, stage=stage)))
    done = CliRunner().invoke(main, ["inspect", str(path), "--plot", str(tmp_path / "g.svg")])
    assert done.exit_code == 0, done.output
    words = [element.text or "" for element in Xml.parse(tmp_path / "g.svg").getroot().iter(f"{SVG}text")]
    assert sum(f"({(4 - stage) * 25}%)" in text for text in words) == 7  # five layers and two transitions


def test_what_can_not_be_drawn(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY_DENSENET)))
    with pytest.raises(InputRefused, match="has no learned groups to draw"):
        plot(path, tmp_path / "g.svg")
    path = save_checkpoint(tmp_path / "d.pth.tar", state_dict(training_model(TINY)))
    with pytest.raises(OutputRefused, match="is the input itself"):
        plot(path, path)
    assert not (tmp_path / "g.svg").exists()

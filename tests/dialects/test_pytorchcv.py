"""pytorchcv's two ImageNet networks: its own forward beside ours, through ONNX and the native library."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.models.condensenet import initialise
from tests.cases import few, long

TOLERANCE = 1e-5  # of the largest logit


def theirs(name: str) -> torch.nn.Module:
    """The network with random weights and valid indices, as its definition has none."""
    from pytorchcv.models import condensenet

    network = getattr(condensenet, name)()
    initialise(network, 7)
    random = np.random.default_rng(7)
    channels = network.features.init_block.conv.out_channels
    for stage in (module for key, module in network.features.named_children() if key.startswith("stage")):
        for unit in (module for key, module in stage.named_children() if key.startswith("unit")):
            conv = unit.conv1
            picked = [np.sort(random.permutation(channels)[: channels // conv.conv.groups]) for _ in range(conv.conv.groups)]
            conv.index.copy_(torch.from_numpy(np.concatenate(picked)))
            channels += unit.conv2.conv.out_channels
    network.output.index.copy_(torch.from_numpy(random.permutation(channels)[: channels // 2]))
    return network.eval()


@pytest.mark.parametrize("name", few(["condensenet74_c4_g4", "condensenet74_c8_g8"]))
@long
def test_its_forward_and_ours(name: str, tmp_path: Path) -> None:
    network = theirs(name)
    torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    path = tmp_path / f"{name}.pth.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / f"{name}.pth", f"{name}.pth")
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    model = cd.load(path)
    arch = model.architecture
    assert (arch.stages, arch.growth, arch.group_1x1, arch.condense_factor) == (
        (4, 6, 8, 10, 8),
        (8, 16, 32, 64, 128),
        *[int(name[-1])] * 2,
    )
    steps = model.preprocessing
    assert (steps.statistics, steps.resize, steps.crop, steps.interpolation, steps.guessed) == ("imagenet", 256, (224, 224), "bilinear", ())
    assert CliRunner().invoke(main, ["export", str(path), "--onnx"]).exit_code == 0  # as it was downloaded
    cd.export(path, "native", tmp_path / "net.so", cpu="host")
    for file in (path, tmp_path / f"{name}.onnx", tmp_path / "net.so"):
        with cd.open_session(file) as session:
            found = session.run(images)
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max(), file

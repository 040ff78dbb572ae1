"""Checkpoints as other people leave them, each made from the real example: what they are, who makes such, and what becomes of them.

The table of docs/reading.md is these cases, in their order (see test_reading_page.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import io
import os
import pickle
import random
import re
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import prune

import cnet_deploy as cd

EXAMPLE = Path(__file__).parents[2] / "examples" / "reference-cifar10.pth.tar"
State = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """``make`` returns the content of a file called ``name``: bytes, or what torch.save writes. ``says`` must stand in the refusal of a
    file that is refused; for one that is read it is empty, and ``form`` is that of the network in it. ``notes`` must be said aloud."""

    title: str
    origin: str
    make: Callable[[], Any]
    says: tuple[str, ...] = ()
    form: str = "training"
    name: str = "checkpoint.pth.tar"
    weights: str | None = None
    notes: tuple[str, ...] = ()
    inert: dict[str, bool] = field(default_factory=dict)


@functools.cache
def _whole() -> State:
    return dict(torch.load(EXAMPLE, weights_only=True))


def trained(prefix: str = "module.") -> OrderedDict[str, torch.Tensor]:
    """The example's tensors, copied, under DataParallel's prefix or another."""
    return OrderedDict((prefix + name.removeprefix("module."), value.clone()) for name, value in _whole()["state_dict"].items())


@functools.cache
def _converted() -> State:
    return dict(cd.convert(cd.load(EXAMPLE)).state_dict())


def converted(prefix: str = "") -> State:
    """The same in group-conv form."""
    return {prefix + name: value.clone() for name, value in _converted().items()}


def checkpoint(**entries: Any) -> State:
    """The whole checkpoint with other entries."""
    return {**_whole(), "state_dict": trained(), **entries}


def saved(value: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    """A zip archive; a double underscore in a name is its point."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


@contextlib.contextmanager
def _module(name: str, *classes: type) -> Iterator[None]:
    """A module of this name with these classes, as long as they are pickled."""
    parts = name.split(".")
    modules = {".".join(parts[: count + 1]): types.ModuleType(".".join(parts[: count + 1])) for count in range(len(parts))}
    for made in classes:
        setattr(modules[name], made.__name__, made)
    before = {key: sys.modules.get(key) for key in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value


def foreign(module: str, name: str, value: Callable[[Any], Any], base: type = object, save: Callable[[Any], bytes] = saved) -> bytes:
    """What ``save`` makes of ``value(made)`` where ``made`` is an instance of a class that nobody has here."""
    made = type(name, (base,), {"__module__": module})
    with _module(module, made):
        instance = made()
        instance.__dict__.update({"val": 0.5, "avg": 0.25, "sum": 3.0, "count": 12})
        return save(value(instance))


def renamed(state: State, *table: tuple[str, str]) -> State:
    """Names replaced by the patterns of a table."""
    for pattern, replacement in table:
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    return state


def pytorchcv() -> State:
    return renamed(
        converted(), (r"init_conv\.", "init_block.conv."), (r"denseblock_(\d+)\.denselayer_(\d+)\.conv_(\d)", r"stage\1.unit\2.conv\3"),
        (r"(conv\d)\.norm", r"\1.bn"), ("norm_last", "post_activ.bn"), (r"^classifier\.", "output."),
    )  # fmt: skip


def hagerrady13() -> State:
    words = {"1": "one", "2": "two", "3": "three"}
    state = renamed(
        trained(""), (r"^features\.", ""), (r"\.denselayer_", ".dense_layer_"), (r"conv_1\.norm", "conv_1.batch_norm"),
        (r"conv_2\.norm", "batch_norm"), (r"conv_2\.conv", "conv_2"), ("norm_last", "batch_norm"),
    )  # fmt: skip
    return {re.sub(r"denseblock_(\d)", lambda match: f"denseblock_{words[match[1]]}", name): value for name, value in state.items()}


def with_plain_classifier() -> State:
    """A converted network whose classifier was replaced and trained for other classes, as the author advises."""
    state = {name: value for name, value in converted().items() if not name.startswith("classifier.")}
    torch.manual_seed(0)
    linear = torch.nn.Linear(int(state["features.norm_last.weight"].numel()), 10)
    return {**state, "classifier.weight": linear.weight.detach(), "classifier.bias": linear.bias.detach()}


def pruned() -> State:
    """With torch.nn.utils.prune, whose masks lie beside the weights."""
    model = cd.convert(cd.load(EXAMPLE))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and "conv_2" in name:
            prune.random_unstructured(module, "weight", amount=0.25)
    return dict(model.state_dict())


class _Device:
    """Pickles as a tensor of a device without storages: as torch's ``Tensor.__reduce_ex__`` does for XLA, old and new."""

    def __init__(self, tensor: torch.Tensor, old: bool) -> None:
        self.tensor, self.old = tensor, old

    def __reduce__(self) -> tuple[Any, ...]:
        if self.old:
            return torch._utils._rebuild_device_tensor_from_numpy, (self.tensor.numpy(), self.tensor.dtype, "xla:0", False)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, (self.tensor, self.tensor.dtype, "xla:0", False)


def on_a_device(old: bool) -> State:
    return {name: _Device(value, old) for name, value in trained("").items()}


def arrays() -> State:
    return {name: value.numpy() for name, value in trained("").items()}


def tarred(data: bytes, mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("checkpoint.pth")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _thop() -> State:
    return {
        **trained(),
        "module.total_ops": torch.zeros(1),
        "module.features.init_conv.total_ops": torch.zeros(1),
        "module.total_params": torch.zeros(1),
    }


def _lightning() -> bytes:
    def whole(hyper: Any) -> State:
        state = {**trained("model."), "criterion.weight": torch.ones(10)}
        return {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4.0", "state_dict": state, "hyper_parameters": hyper}

    return foreign("pytorch_lightning.utilities.parsing", "AttributeDict", whole, dict)


def _in_the_middle(word: str) -> Callable[[], State]:
    return lambda: checkpoint(state_dict=renamed(trained(""), (r"(denselayer_\d+)\.", rf"\1.{word}.")))


def _ema() -> State:
    return checkpoint(state_dict_ema={name: value * 2 if name.endswith("conv.weight") else value for name, value in trained("").items()})


class _Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.zeros(3))
    return buffer.getvalue()


def _torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), buffer)
    return buffer.getvalue()


NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUMPY = np.random.default_rng(0).standard_normal(3)
READ: tuple[Case, ...] = (
    Case("the reference's training checkpoint, `module.` and all", "ShichenLiu/CondenseNet", checkpoint),
    Case("the reference's converted checkpoint", "ShichenLiu/CondenseNet", lambda: {"state_dict": converted("module.")}, form="group-conv"),
    Case(
        "pytorchcv's names, in a `.pth.zip`",
        "osmr/pytorchcv",
        lambda: zipped(net__pth=saved(pytorchcv())),
        form="group-conv",
        name="net.pth.zip",
    ),
    Case("hagerrady13's names", "hagerrady13/CondenseNet-PyTorch", lambda: {"epoch": 3, "iteration": 1, "state_dict": hagerrady13()}),
    Case(
        "a compiled network: `_orig_mod.`, `module._orig_mod.`",
        "pytorch#101107",
        lambda: checkpoint(state_dict=trained("module._orig_mod.")),
    ),
    Case(
        "Lightning: `model.`, with the criterion's weights beside it",
        "pytorch-lightning",
        _lightning,
        name="epoch=3.ckpt",
        notes=("criterion.weight",),
        inert={"pytorch_lightning.utilities.parsing.AttributeDict": False},
    ),
    Case("FSDP: `_fsdp_wrapped_module.` in the middle of names", "torch.distributed.fsdp", _in_the_middle("_fsdp_wrapped_module")),
    Case("activation checkpointing: `_checkpoint_wrapped_module.`", "torch.distributed", _in_the_middle("_checkpoint_wrapped_module")),
    Case(
        "the weights under `net`, `model`, `model_state_dict` … or one level deeper",
        "forks of the ImageNet example",
        lambda: {"epoch": 3, "checkpoint": {"model_state_dict": trained("")}},
    ),
    Case(
        "weights and averaged weights: `state_dict` is taken",
        "timm: `state_dict_ema`",
        _ema,
        notes=("takes the weights state_dict", "state_dict_ema"),
    ),
    Case(
        "buffers that thop counted in",
        "thop: `total_ops`, `total_params`",
        lambda: checkpoint(state_dict=_thop()),
        notes=("2 tensors called total_ops",),
    ),
    Case(
        "`args` as a Namespace",
        "forks of the ImageNet example",
        lambda: checkpoint(args=argparse.Namespace(lr=0.1, data="cifar")),
        inert={"argparse.Namespace": False},
    ),
    Case("`best_prec1` as a number of numpy", "pytorch#138985", lambda: checkpoint(best_prec1=np.float64(87.07))),
    Case(
        "a meter, a configuration, an object of any class beside the weights",
        "AverageMeter, EasyDict …",
        lambda: foreign("utils.metrics", "AverageMeter", lambda made: checkpoint(meter=made)),
        inert={"utils.metrics.AverageMeter": False},
    ),
    Case(
        "the whole checkpoint in a dictionary of a class of its own",
        "EasyDict, AttrDict",
        lambda: foreign("easydict", "EasyDict", lambda made: (made.update(checkpoint()), made)[1], dict),
        inert={"easydict.EasyDict": False},
    ),
    Case(
        "random states of Python, numpy and torch",
        "resumable training loops",
        lambda: checkpoint(random=[random.getstate(), np.random.RandomState(0).get_state(), torch.get_rng_state(), NUMPY]),
    ),
    Case(
        "code beside the weights: left inert, and named by `inspect`",
        "attacks",
        lambda: checkpoint(extra=_Call()),
        inert={"posix.system": True},
    ),
    Case(
        "a converted network with a classifier of its own",
        "ShichenLiu/CondenseNet#15: transfer learning",
        with_plain_classifier,
        form="group-conv",
    ),
    Case("arrays of numpy as weights", "ports from other frameworks", arrays),
    Case("a pickle of tensors, not of torch.save", "pickle.dump", lambda: pickle.dumps(trained("")), name="weights.pkl"),
    Case("tensors of a TPU (XLA)", "pytorch/xla#2858", lambda: on_a_device(False), name="tpu.bin"),
    Case("tensors of a TPU, older", "pytorch/xla", lambda: on_a_device(True), name="tpu.th"),
    Case("pruned with torch.nn.utils.prune: `weight_orig`, `weight_mask`", "torch.nn.utils.prune", pruned, form="group-conv"),
    Case("any suffix, or none", "everybody", checkpoint, name="model_best"),
    Case("gzipped", "mirrors", lambda: gzip.compress(saved(checkpoint(), legacy=True)), name="checkpoint.pth.tar.gz"),
)
REFUSED: tuple[Case, ...] = (
    Case(
        "two sets of weights that fit equally, without `--weights`",
        "torchvision's `model` and `model_ema`",
        lambda: {"model": trained(""), "model_ema": trained("")},
        ("model (188 tensors), model_ema (188 tensors)", "--weights KEY"),
    ),
    Case(
        "an object among the weights",
        "anybody",
        lambda: checkpoint(state_dict={**trained(), "args": argparse.Namespace(lr=1)}),
        ("'args'", "argparse.Namespace", "expected a state dict"),
    ),
    Case(
        "a whole pickled module",
        "torch.save(model)",
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)),
        ("is a whole pickled module (torch.nn.modules.container.Sequential)", "torch.save(model.state_dict(), …)"),
    ),
    Case(
        "a network that is not of the family",
        "torchvision",
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict(),
        ("another network",),
    ),
    Case(
        "a zip archive with several checkpoints",
        "archives of runs",
        lambda: zipped(a__pth=saved(trained()), b__pth=saved(trained())),
        ("zip archive with 2 checkpoints", "a.pth, b.pth", "unzip it"),
        name="runs.zip",
    ),
    Case("a tar archive", "hubs", lambda: tarred(saved(trained()), "w"), ("is a tar archive", "tar xf")),
    Case("a gzipped tar archive", "hubs", lambda: tarred(saved(trained()), "w:gz"), ("is a gzipped tar archive", "tar xzf")),
    Case(
        "a Git LFS pointer",
        "clones without git-lfs",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        ("git lfs pull",),
    ),
    Case(
        "a page that says that the download failed",
        "hubs",
        lambda: b"<!DOCTYPE html><html><head></head></html>",
        ("is a web page (HTML)", "get the file itself again"),
    ),
    Case(
        "a NumPy archive",
        "ports",
        _npz,
        ("is a NumPy archive (.npz)", "safetensors"),
        name="weights.npz",
    ),
    Case(
        "HDF5 and `.keras`, TensorFlow, TFLite",
        "Keras, TensorFlow",
        lambda: b"\x89HDF\r\n\x1a\n" + bytes(64),
        ("is an HDF5 file (Keras)", "ONNX"),
        name="weights.h5",
    ),
    Case(
        "TorchScript and programs of torch.export",
        "torch.jit.save",
        _torchscript,
        ("is a TorchScript program", "state_dict()"),
        name="model.pt",
    ),
    Case(
        "an engine, a library or an ONNX file where a checkpoint is expected",
        "exports",
        lambda: b"ftrt" + bytes(64),
        ("is a TensorRT engine",),
        name="model.pt",
    ),
    Case("a truncated file", "downloads that broke off", lambda: saved(checkpoint())[:-2000], ("is truncated or damaged", "get it again")),
)


def write(case: Case, folder: Path) -> Path:
    """The file of a case."""
    path = folder / case.name
    content = case.make()
    path.write_bytes(content if isinstance(content, bytes) else saved(content))
    return path

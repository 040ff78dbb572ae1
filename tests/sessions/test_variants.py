"""Names of backends with parts after dots."""

from __future__ import annotations

from typing import Any

import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.sessions import backends, resolve_backend


@pytest.mark.parametrize(
    ("name", "backend", "options", "export"),
    [
        ("torch", "torch", {}, {}),
        ("torch.compile", "torch", {"compiled": True}, {}),
        ("torch.compile.fp16", "torch", {"compiled": True, "precision": "fp16"}, {}),
        ("torch.cudagraph.fp16.channels_last", "torch", {"cudagraph": True, "precision": "fp16", "channels_last": True}, {}),
        ("tensorrt.fp32", "tensorrt", {}, {}),
        ("tensorrt.tf32", "tensorrt", {}, {"precision": "tf32"}),
        ("tensorrt.cudagraph.fp16", "tensorrt", {"cudagraph": True}, {"precision": "fp16"}),
        ("onnxruntime.tensorrt", "onnxruntime", {"provider": "tensorrt"}, {}),
        ("onnxruntime.tensorrt.fp16", "onnxruntime", {"provider": "tensorrt"}, {"precision": "fp16"}),
        ("onnxruntime.tf32", "onnxruntime", {"tf32": True}, {}),
        ("native.bf16", "native", {}, {"precision": "bf16"}),
        ("openvino.bf16", "openvino", {"precision": "bf16"}, {}),
        *((f"{name}.int8", name, {}, {"precision": "int8"}) for name in ("native", "onnxruntime", "openvino", "tensorrt")),
    ],
)
def test_names(name: str, backend: str, options: dict[str, Any], export: dict[str, Any]) -> None:
    assert resolve_backend(name) == (backend, options, export)


def test_every_part_is_known() -> None:
    for backend, described in backends().items():
        for part in described.parts:
            assert resolve_backend(f"{backend}.{part}").backend == backend


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tflite", "no backend is called 'tflite'; expected one of native, "),
        ("", "no backend is called ''"),
        ("torch.", "torch has no ''; expected torch alone or with some of compile, cudagraph"),
        ("torch.provider", "torch has no 'provider'; expected torch alone or with some of compile, cudagraph, channels_last, tf32"),
        ("native.fp16", "native has no 'fp16'; expected native alone or with some of bf16, int8"),
        ("torch.compile.compile", "it has 'compile' twice"),
        ("tensorrt.fp16.cudagraph.fp16", "it has 'fp16' twice"),
        ("tensorrt.fp32.fp16", "fp32 and fp16 are two precisions; expected one"),
        ("native.bf16.int8", "bf16 and int8 are two precisions; expected one"),
    ],
)
def test_what_is_no_name(name: str, message: str) -> None:
    with pytest.raises(InputRefused, match="no backend is called") as caught:
        resolve_backend(name)
    assert message in str(caught.value)

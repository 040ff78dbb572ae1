"""The example server: answers as Python does, without it, and refuses bad requests."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.exporters.native.toolchain import SOURCES

EXAMPLES = Path(__file__).parents[3] / "examples"
PICTURES = sorted((EXAMPLES / "images").glob("*.png"))


@pytest.fixture(scope="module")
def model(converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("server")
    return cd.export(converted, "native", place / "model.so", labels=EXAMPLES / "cifar10-labels.txt", cpu="host").path


@pytest.fixture(scope="module")
def process(model: Path, system_tool: Callable[[str], str]) -> Iterator[subprocess.Popen[str]]:
    """A running server, which waits a second for a request to come in."""
    system_tool("libpng-config")
    program = model.with_name("server")
    command = [system_tool("g++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DSECONDS=1", "-I", SOURCES]
    subprocess.run([*command, EXAMPLES / "native" / "server.cpp", "-o", program, "-lpng", "-ldl", "-pthread"], check=True)
    with subprocess.Popen([program, model, "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
            assert process.poll() is None  # it outlived all that was sent to it
        finally:
            process.kill()


@pytest.fixture(scope="module")
def port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().rpartition(":")[2])


def post(port: int, body: bytes, path: str = "/classify") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def as_python(session: cd.Session, image: Any) -> list[dict[str, Any]]:
    (answer,) = session.classify([image])
    guesses: list[dict[str, Any]] = answer.to_dict()["guesses"]
    return guesses


def assert_same(got: tuple[int, Any], expected: list[dict[str, Any]]) -> None:
    status, body = got
    assert status == 200, body
    for ours, theirs in zip(body["guesses"], expected, strict=True):
        assert (ours["class"], ours["name"]) == (theirs["class"], theirs["name"])
        assert ours["probability"] == pytest.approx(theirs["probability"], rel=1e-9)


def test_the_example_images_are_answered_as_in_python(model: Path, port: int) -> None:
    with cd.open_session(model) as session:
        for picture in PICTURES:
            got = post(port, picture.read_bytes())
            assert_same(got, as_python(session, picture))
            assert got[1]["guesses"][0]["name"] == picture.stem


def kinds() -> dict[str, tuple[Image.Image, str]]:
    with Image.open(PICTURES[0]) as opened:
        colours = opened.convert("RGB").resize((91, 70), Image.Resampling.BICUBIC)
    alpha = colours.copy()
    alpha.putalpha(colours.convert("L"))
    deep = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16) * 251)
    shallow = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16))
    return {
        "colours": (colours, "PNG"),
        "alpha": (alpha, "PNG"),
        "grey": (colours.convert("L"), "PNG"),
        "grey and alpha": (alpha.convert("LA"), "PNG"),
        "palette": (colours.quantize(40), "PNG"),
        "palette of 4 bits": (colours.quantize(9), "PNG"),
        "black and white": (colours.convert("1"), "PNG"),
        "grey of 16 bits": (deep, "PNG"),
        "8 bits in 16": (shallow, "PNG"),
        "PPM": (colours, "PPM"),
        "PGM": (colours.convert("L"), "PPM"),
        "portrait": (colours.resize((40, 333)), "PNG"),
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_png_is_answered_as_in_python(kind: str, model: Path, port: int, tmp_path: Path) -> None:
    image, container = kinds()[kind]
    image.save(tmp_path / "image", container, **({"transparency": 0} if image.mode == "P" else {}))
    with cd.open_session(model) as session:
        assert_same(post(port, (tmp_path / "image").read_bytes()), as_python(session, tmp_path / "image"))


def test_what_is_no_image_is_refused(port: int) -> None:
    png = PICTURES[0].read_bytes()
    huge = io.BytesIO()
    Image.new("1", (16000, 16000)).save(huge, "PNG")
    damaged = [png[:size] for size in (8, 20, 40, len(png) // 2, len(png) - 30)]
    wrong = [
        b"",
        b"x",
        b"P6",
        b"P6 1 1",
        b"P6\n2 2\n255\n" + bytes(11),
        b"P6\n0 2\n255\n",
        b"P6 #",
        b"P6 9999999 1 255\n",
        b"P6 1 1 65535\n" + bytes(9),
    ]
    for body in (*damaged, *wrong, huge.getvalue(), b"\xff\xd8\xff\xe0JFIF", bytes(1 << 20)):
        status, answer = post(port, body)
        assert (status, list(answer)) == (415, ["problem"]), body[:20]
    assert post(port, png)[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /classify HTTP/1.1\r\n\r\n", 405),
        (b"DELETE /model HTTP/1.1\r\n\r\n", 405),
        (b"POST /classify HTTP/1.1\r\n\r\n", 411),
        (b"POST /classify HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /classify HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
        (b"POST /classify HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST /classify HTTP/1.1\r\nContent-Length: 16777217\r\n\r\n", 413),
        (b"POST /classify HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12", 400),
        (b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (b"\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET  HTTP/1.1\r\n\r\n", 404),
        (b"GET /x HTTP/1.1\r\nA: " + b"b" * 40_000, 431),
        (b"POST /classify HTTP/1.1\r\nContent-Length: 100\r\n\r\nnever more", 408),
        (b"POST /classify HTTP/1.1\r\nHost", 408),
    ],
)  # fmt: skip
def test_bad_requests(port: int, sent: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(sent)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_client_that_goes_away_harms_nobody(port: int) -> None:
    for _ in range(20):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: 9999\r\n\r\n")
        client.close()
    assert post(port, PICTURES[0].read_bytes())[0] == 200


def test_what_follows_a_refused_request_takes_no_memory(port: int, process: subprocess.Popen[str]) -> None:
    """It is dropped. Where there is no memory left, a worker that kept it would take the whole server with it."""
    limits = resource.prlimit(process.pid, resource.RLIMIT_AS)
    size = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size + (2 << 20), limits[1]))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(b"GET /missing HTTP/1.1\r\n\r\n")
            with contextlib.suppress(OSError):  # it reads for a moment only
                client.sendall(bytes(12 << 20))
            with contextlib.suppress(OSError):
                while client.recv(1 << 16):
                    pass
        assert process.poll() is None
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_AS, limits)
    assert post(port, PICTURES[0].read_bytes())[0] == 200


def test_what_is_no_library_is_refused(port: int, model: Path, tmp_path: Path) -> None:
    server = model.with_name("server")
    (tmp_path / "x.so").write_bytes(b"x")
    for arguments in ([], [tmp_path / "none.so"], [tmp_path / "x.so"], ["libm.so.6"], [model, "70000"], [model, str(port)]):
        done = subprocess.run([server, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith("server: "), arguments

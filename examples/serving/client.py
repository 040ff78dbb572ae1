"""Classify images through a server that speaks the KServe V2 protocol over HTTP, such as Triton.

    cnet-deploy export model.safetensors --native --triton repository
    python examples/serving/client.py http://127.0.0.1:8000/v2/models/model repository/model/1/model.so.json examples/images/cat.png

The manifest says how images are prepared. Triton's classification extension adds the names of classes to the answer.
"""

import json
import math
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

import cnet_deploy as cd


def ask(url: str, body: bytes | None = None, **headers: str) -> dict:
    """The server's answer to a GET, or to a POST of a body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:  # such as a batch that is too large: the body says why
        sys.exit(f"{url}: {error.read().decode(errors='replace')}")


def classify(url: str, manifest: str, *paths: str) -> None:
    """Print the five most likely classes of each image, all images in one request."""
    steps = cd.Manifest.from_json(Path(manifest).read_text(encoding="utf-8")).preprocessing
    images = np.stack([steps.read(path) for path in paths])
    classes = ask(url)["outputs"][0]["shape"][-1]  # all of them, for softmax; who needs no probabilities asks for five
    wanted = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": images.shape, "parameters": {"binary_data_size": images.nbytes}}],
        "outputs": [{"name": "logits", "parameters": {"classification": classes}}],
    }
    header = json.dumps(wanted).encode()
    length = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    found = ask(f"{url}/infer", header + images.tobytes(), **length)["outputs"][0]["data"]  # "logit:number:name", the largest first
    for path, start in zip(paths, range(0, len(found), classes), strict=True):
        answers = [answer.split(":", 2) for answer in found[start : start + classes]]
        total = sum(math.exp(float(logit) - float(answers[0][0])) for logit, *_ in answers)
        print(path)
        for logit, *name in answers[:5]:
            print(f"{100 * math.exp(float(logit) - float(answers[0][0])) / total:7.1f} %  {name[-1]}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("expected: client.py URL/v2/models/NAME MANIFEST IMAGE...")
    classify(*sys.argv[1:])

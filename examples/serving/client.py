"""Classify images through a server that speaks the KServe V2 protocol over HTTP, such as Triton: the likeliest classes, with their logits.

    cnet-deploy export model.safetensors --native --triton repository
    python examples/serving/client.py http://127.0.0.1:8000/v2/models/model repository/model/1/model.so.json examples/images/cat.png

The manifest says how images are prepared. Triton's classification extension adds the names of the classes to the answer.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

import cnet_deploy as cd

url, manifest, *paths = sys.argv[1:]
steps = cd.Manifest.from_json(Path(manifest).read_text(encoding="utf-8")).preprocessing
images = np.stack([steps.read(path) for path in paths])  # float32 [N, channels, height, width]
wanted = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": images.shape, "parameters": {"binary_data_size": images.nbytes}}],
    "outputs": [{"name": "logits", "parameters": {"classification": 5}}],
}
header = json.dumps(wanted).encode()
request = urllib.request.Request(f"{url}/infer", header + images.tobytes(), {"Inference-Header-Content-Length": str(len(header))})
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.load(answer)["outputs"][0]["data"]  # of each image "logit:number:name", the largest first
except urllib.error.HTTPError as error:  # such as a batch that is too large: the body says why
    sys.exit(f"{url}: {error.read().decode(errors='replace')}")
for path, answers in zip(paths, np.split(np.array(found), len(paths)), strict=True):
    print(path)
    for logit, _, name in (text.split(":", 2) for text in answers):
        print(f"{float(logit):8.2f}  {name}")

"""Stands in for Triton's onnxruntime backend, which no registry has: runs the model's file with the onnxruntime of PyPI, in the server's
Python backend. Its packages are those of .venv-triton."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """The model as the Python backend calls it."""

    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        batches = [triton.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        sizes = [len(batch) for batch in batches]
        (logits,) = self.session.run(["logits"], {"input": np.concatenate(batches)})
        parts = np.split(logits, np.cumsum(sizes)[:-1])
        return [triton.InferenceResponse([triton.Tensor("logits", part)]) for part in parts]

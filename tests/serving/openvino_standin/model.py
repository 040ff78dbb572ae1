"""Stands in for Triton's openvino backend, which no registry has: runs the model's file with the OpenVINO of PyPI, in the server's Python
backend. Its packages are those of .venv-triton."""

import json
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as triton


class TritonPythonModel:
    """The model as the Python backend calls it."""

    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.model = openvino.Core().compile_model(str(file), "CPU", settings)

    def execute(self, requests):
        batches = [triton.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        logits = self.model(np.concatenate(batches))[0]
        parts = np.split(logits, np.cumsum([len(batch) for batch in batches])[:-1])
        return [triton.InferenceResponse([triton.Tensor("logits", part)]) for part in parts]

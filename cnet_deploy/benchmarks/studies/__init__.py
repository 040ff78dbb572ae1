"""Separate studies, run as ``python -m``: runtimes side by side, the cost of the harness, a training step."""

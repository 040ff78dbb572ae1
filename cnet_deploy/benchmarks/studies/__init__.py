"""Studies of their own, run as ``python -m``: runtimes side by side, the harness's own cost, a training step."""

"""The CPU, CUDA and TensorRT on this machine. Nothing here depends on networks."""

"""The CPU, CUDA and TensorRT as they are on this machine. Nothing here knows networks."""

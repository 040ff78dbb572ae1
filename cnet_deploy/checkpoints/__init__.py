"""Read and write files of weights: tensors from any container, the network they belong to, models. Only load and save import torch."""

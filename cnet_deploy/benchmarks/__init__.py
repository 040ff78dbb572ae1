"""What an inference costs on this machine, and the paper's inference-time table beside it."""

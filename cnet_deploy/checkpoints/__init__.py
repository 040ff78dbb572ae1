"""Files of weights: tensors out of any container, which network they are, models from them and back. No torch but in load and save."""

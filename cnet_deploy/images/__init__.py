"""Pixels and labels: decoding, datasets, preprocessing, class names. No torch."""

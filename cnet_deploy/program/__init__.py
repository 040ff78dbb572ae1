"""The lowered network in numpy, which every exporter reads."""

"""The lowered network in numpy: what every exporter reads."""

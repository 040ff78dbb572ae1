"""The latency gate: is head slower than base?"""

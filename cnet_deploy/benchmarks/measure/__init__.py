"""Measuring: one cell in a process of its own, rounds in which cells take turns, statistics, and the rule that decides."""

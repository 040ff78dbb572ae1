"""Measuring: cells in separate processes, rounds in which they take turns, statistics, and the decision rule of the gate."""

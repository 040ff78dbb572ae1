"""Choosing the form of each dense block by measuring it."""

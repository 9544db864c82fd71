"""Experiments on margins: a configuration each, run by name with `python -m experiments`."""

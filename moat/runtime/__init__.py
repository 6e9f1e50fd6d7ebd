"""Runs: the importable API."""

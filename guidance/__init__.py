"""Steering one run with a reward."""

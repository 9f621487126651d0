"""Measurements of the experiment database."""

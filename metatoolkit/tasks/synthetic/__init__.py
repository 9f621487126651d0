"""Data that are generated or drawn, each a function of its seed."""

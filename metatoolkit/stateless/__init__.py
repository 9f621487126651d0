"""Evaluation of modules and losses as functions of given tensors, and of nothing else."""

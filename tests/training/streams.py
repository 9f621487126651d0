"""What tests do with streams of batches."""

import random

import numpy as np
import torch

from metatoolkit.training.checkpoints import read_checkpoint, write_checkpoint


def take(stream, count):
    return [stream.next() for _ in range(count)]


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def stored(tmp_path, saved):
    """Pass a state through a file."""
    write_checkpoint(tmp_path / "c.pt", {"saved": saved})
    return read_checkpoint(tmp_path / "c.pt")["saved"]

"""Run ``python -m benchmarks --list``, which is what ``scripts/benchmark`` does."""

import sys

from benchmarks.harness.command import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m metatoolkit.cli``."""

import sys

from metatoolkit.cli import main

sys.exit(main())

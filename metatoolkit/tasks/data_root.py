"""The folder where data sets live."""

from __future__ import annotations

import os
from pathlib import Path

from metatoolkit.errors import optional_import

DATA_VARIABLE = "METATOOLKIT_DATA"


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder where data sets live.

    Args:
        root: Taken if given; else ``METATOOLKIT_DATA``, else a folder of the user's data
            directory.

    Raises:
        MissingDependencyError: Neither is set, and the user's data directory cannot be told.
    """
    given = root if root is not None else os.environ.get(DATA_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    with optional_import(f"a folder of data sets that neither root nor {DATA_VARIABLE} names"):
        import platformdirs
    base = platformdirs.user_data_dir("metatoolkit", appauthor=False)
    return Path(base).absolute() / "datasets"

"""What a run is recorded with beside its values: git state, sources, packages, GPUs, host."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from metatoolkit.records.redaction import redact

GIT_SECONDS = 5.0
_METADATA = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.(?:dist-info|egg-info)")
_FOREIGN = ("/site-packages/", "/dist-packages/")


def git_state(directory: Path) -> dict[str, Any] | None:
    """Describe the git repository that a directory lies in.

    Args:
        directory: The experiment's directory.

    Returns:
        ``url`` (without credentials), ``commit``, ``dirty`` and ``root``; None where there is no
        git, no repository, no commit, or a repository that git does not trust.
    """
    root = _git(directory, "rev-parse", "--show-toplevel")
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    if root is None or commit is None:
        return None
    url = _git(directory, "config", "--get", "remote.origin.url")
    status = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {
        "url": redact(url) if url else f"git:/{root}",
        "commit": commit,
        "dirty": bool(status) if status is not None else None,
        "root": root,
    }


def _git(directory: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def source_files(roots: list[Path]) -> list[Path]:
    """List the Python files of the experiment's own code that are loaded now.

    Args:
        roots: Directories that hold the experiment's own code.

    Returns:
        Every loaded module's file below one of them, except installed packages.
    """
    library = sysconfig.get_paths()["stdlib"] + os.sep
    inside = tuple(f"{root}{os.sep}" for root in roots)
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not isinstance(name, str) or not name.endswith(".py"):
            continue
        if name.startswith(library) or any(folder in name for folder in _FOREIGN):
            continue
        real = os.path.realpath(name)
        if real.startswith(inside):
            found.add(real)
    return [Path(path) for path in sorted(found) if os.path.isfile(path)]


def package_versions() -> list[str]:
    """List the installed packages that are loaded now.

    Returns:
        ``name==version``, sorted.
    """
    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    installed = _installed()
    versions = {version for module in loaded for version in installed.get(module, ())}
    return sorted(versions, key=str.lower)


@functools.cache
def _installed() -> dict[str, list[str]]:
    """Map the name of every importable module to the packages that bring it.

    It is read from the folders' names and the lists of files: parsing the metadata of a few
    hundred packages would hold up the start of every run for a second.
    """
    installed: dict[str, list[str]] = {}
    seen: set[str] = set()
    for directory in dict.fromkeys(sys.path):
        try:
            entries = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for entry in entries:
            match = _METADATA.fullmatch(entry)
            if match and match["name"].lower() not in seen:
                seen.add(match["name"].lower())
                package = f"{match['name']}=={match['version']}"
                for module in _modules(os.path.join(directory, entry), match["name"]):
                    installed.setdefault(module, []).append(package)
    return installed


def _modules(metadata: str, package: str) -> set[str]:
    """List the top-level modules of an installed package."""
    modules = {package.replace("-", "_")}
    try:
        with open(os.path.join(metadata, "RECORD"), encoding="utf-8") as file:
            for line in file:
                path = line.partition(",")[0].strip('"')
                first, slash, _ = path.partition("/")
                if slash or first.endswith((".py", ".so", ".pyd")):
                    modules.add(first if slash else first.partition(".")[0])
    except OSError:
        # An egg-info folder has no such list; its own name has to do.
        return modules
    return modules


def gpu_information() -> dict[str, Any] | None:
    """Describe the GPUs that this process uses.

    Asking for a GPU that is not in use would start CUDA, which takes seconds and memory on it.

    Returns:
        The version of CUDA and per GPU its model, its memory and the peak of what tensors took of
        it, in MiB, in Sacred's layout; None where no GPU has been used so far.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        peak = torch.cuda.max_memory_allocated(index)
        if peak:
            gpus.append(
                {
                    "model": properties.name,
                    "total_memory": int(properties.total_memory // 2**20),
                    "peak_memory": int(peak // 2**20),
                }
            )
    return {"cuda": torch.version.cuda, "gpus": gpus} if gpus else None

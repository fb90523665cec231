"""Which code made a stage."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def code() -> dict[str, str | None]:
    """The git revision ('-dirty' when changed since) and the versions of what computes."""
    try:
        ask = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
        answer = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False)
        revision = answer.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        revision = None  # no git here, as in a container
    found: dict[str, str | None] = {"revision": revision}
    for package in ("ray", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found

"""The oldest packages that may be used: older ones have holes that a file from a stranger can use."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from launch.verdict import MACHINE, RunError

FLOORS = {
    "torch": ("2.10", "CVE-2026-24747, CVE-2025-32434: weights_only loading can run code"),
    "transformers": ("5.3", "CVE-2026-4372, CVE-2026-5241: a model's configuration can run code"),
    "deepspeed": ("0.15.1", "CVE-2024-43497: remote code execution"),
    "datasets": ("4.0", "before it a dataset could bring a script that was run"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: a Parquet or Arrow file can run code"),
    "jinja2": ("3.1.6", "CVE-2025-27516: a template can leave its sandbox"),
    "PyYAML": ("5.4", "CVE-2020-14343: a YAML file can run code"),
}


def check_versions(find_version: Callable[[str], str] = version) -> list[str]:
    """What is installed below its floor, a sentence each; packages that are not there are left out.

    Args:
        find_version: gives the version of a package, or raises PackageNotFoundError.
    """
    problems = []
    for package, (floor, reason) in FLOORS.items():
        try:
            found = find_version(package)
        except PackageNotFoundError:
            continue
        if is_below(found, floor):
            problems.append(f"{package} {found} is older than {floor} ({reason}): pip install -U {package}")
    return problems


def is_below(found: str, floor: str) -> bool:
    """Whether a version comes before another."""
    return _order(found) < _order(floor)


def require_versions() -> None:
    """Stop where something is installed below its floor.

    Raises:
        RunError: it is; exit code 3.
    """
    problems = check_versions()
    if problems:
        raise RunError(MACHINE, "\n  ".join(["a package is too old to be safe:", *problems]))


def _order(text: str) -> tuple[int, ...]:
    """Numbers that order versions; 2.10.0rc1 comes before 2.10, 2.10.0+cu126 does not."""
    from packaging.version import InvalidVersion, Version

    try:
        found = Version(text)
    except InvalidVersion:
        return (0,)
    release = (*found.release, 0, 0, 0)[:3]
    return (*release, -1 if found.is_prerelease else 0)

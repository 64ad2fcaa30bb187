"""Installed packages against the versions that we want, and those with known holes."""

from collections.abc import Callable, Mapping, Sequence

from packaging.requirements import Requirement

from launch.doctor.finding import Finding
from launch.floors import FLOORS, is_below

OURS = "maskwright"
EXTRAS = ("", "deepspeed", "tensorboard", "near", "flash", "names")
"""Ours that matter to a run."""


def judge_packages(
    requirements: Sequence[str], find: Callable[[str], str | None], needed: Mapping[str, str]
) -> list[Finding]:
    """Missing and outdated packages, and unsafe ones.

    Args:
        requirements: of our distribution, extras with their markers (`importlib.metadata.requires`).
        find: the version of an installed package; None: not installed.
        needed: packages that the profile wants beyond the plain ones, and the extra that brings each.
    """
    findings = []
    for text in requirements:
        requirement = Requirement(text)
        extras = [extra for extra in EXTRAS if _belongs(requirement, extra)]
        found = find(requirement.name)
        if extras and (found is not None or "" in extras or requirement.name in needed):
            findings.append(_judge_version(requirement, found, needed.get(requirement.name, "")))
    findings += [
        Finding(
            f"safety of {name}", "lacks", f"{found}: {reason}", f">={floor}", f"pip install '{name}>={floor}'"
        )
        for name, (floor, reason) in FLOORS.items()
        if (found := find(name)) is not None and is_below(found, floor)
    ]
    return findings


def _belongs(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _judge_version(requirement: Requirement, found: str | None, extra: str) -> Finding:
    name, wanted = f"package {requirement.name}", str(requirement.specifier)
    install = f"pip install '{requirement.name}{wanted}'"
    if found is None:
        remedy = f"pip install '{OURS}[{extra}]'" if extra else install
        return Finding(name, "lacks", "not installed", wanted, remedy)
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(name, "ok", found, wanted)
    return Finding(name, "lacks", found, wanted, install)

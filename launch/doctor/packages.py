"""Installed packages against the versions that we want, and against known faults."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from launch.doctor.finding import Finding


@dataclass(frozen=True)
class Fault:
    """A known fault of a package.

    Attributes:
        package, versions: which ones have it.
        what: happens.
        source: where it is told.
        remedy: what to install.
    """

    package: str
    versions: str
    what: str
    source: str
    remedy: str


FAULTS = (
    Fault(
        "torch", "<2.6", "torch.load(weights_only=True) runs code from a file", "CVE-2025-32434",
        "torch>=2.10",
    ),
    Fault(
        "torch", ">=2.6,<2.10", "a crafted file corrupts memory in torch.load(weights_only=True)",
        "CVE-2026-24747", "torch>=2.10",
    ),
    Fault(
        "transformers", "<5.3", "a model's configuration can fetch and run code, trust_remote_code or not",
        "CVE-2026-4372", "transformers>=5.3",
    ),
)  # fmt: skip
"""Only what is told by its makers or was read in the source."""

OURS = "maskwright"
EXTRAS = ("", "deepspeed", "tensorboard", "near", "flash", "names")
"""Ours that matter to a run."""


def judge_packages(
    requirements: Sequence[str], find: Callable[[str], str | None], needed: Mapping[str, str]
) -> list[Finding]:
    """Missing and outdated packages, and faulty ones.

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
    faults = [(fault, find(fault.package)) for fault in FAULTS]
    findings += [
        Finding(
            f"package {fault.package}", "note", f"{found}: {fault.what} ({fault.source})",
            f"not {fault.versions}",
            f"pip install '{fault.remedy}'",
        )
        for fault, found in faults
        if found is not None and SpecifierSet(fault.versions).contains(found, prereleases=True)
    ]  # fmt: skip
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

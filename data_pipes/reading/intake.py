"""The intake: what becomes of input that cannot be used. Every line ends as good, as blank or as skipped.

What a line is depends on the kind of source: a line of a text, JSON-lines or CSV file (a quoted CSV record
counts all its lines, the header none), a paragraph or a file where that is the unit, a row of a Parquet file
or of a dataset, an entry of a package's member.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from data_pipes.documents import SourceError

Policy = Literal["raise", "skip"]

MAX_EXAMPLES = 10
MAX_EXCERPT = 80
# From here on a share far above the cap stops the reading: the rest of a large file would not heal it.
EARLY_LINES = 10_000
EARLY_FACTOR = 10
EARLY_SHARE = 0.5


class BadInputError(Exception):
    """One unusable line on its way to `Intake.reject`; never leaves the readers."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Intake:
    """Counts lines by their fate; decides whether a bad one stops the reading.

    Under `raise` the first bad line is an error. Under `skip` bad lines are left out and counted by reason,
    and it is an error when their share exceeds `max_bad_share` (0-1). One intake a source judges each alone.
    """

    def __init__(self, policy: Policy = "raise", max_bad_share: float = 0.01):
        if policy not in ("raise", "skip"):
            raise SourceError(f"policy {policy!r} for bad input is not known; write one of raise, skip")
        if not 0 <= max_bad_share <= 1:
            raise SourceError(f"max_bad_share is {max_bad_share}; wanted a share from 0 to 1")
        self.policy: Policy = policy
        self.max_bad_share = max_bad_share
        self.num_lines = 0
        self.num_good = 0
        self.num_blank = 0
        self.skipped: Counter[str] = Counter()
        self.examples: list[dict[str, str]] = []

    @property
    def num_skipped(self) -> int:
        """Bad lines left out, of all reasons."""
        return self.skipped.total()

    def count(self, *, num_lines: int = 0, num_good: int = 0, num_blank: int = 0) -> None:
        """Add lines as they were cut, and the fate of those that are not bad."""
        self.num_lines += num_lines
        self.num_good += num_good
        self.num_blank += num_blank
        if self.skipped:
            self._stop_early()

    def reject(self, reason: str, place: str, message: str, excerpt: str = "", num_lines: int = 1) -> None:
        """Skip lines, already or later counted as lines, for one reason.

        Args:
            reason: a short name to count by, such as not_utf8.
            place: file and line.
            message: what was found, wanted and is to be changed.
            excerpt: raw beginning of the line; it is escaped and cut here.
            num_lines: how many lines are lost.

        Raises:
            SourceError: under the policy `raise`.
        """
        example = {"reason": reason, "place": escape(place), "message": message, "excerpt": shorten(excerpt)}
        if self.policy == "raise":
            raise SourceError(describe_example(example))
        self.skipped[reason] += num_lines
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(example)

    def reject_each(
        self, reason: str, num_lines: int, describe: Callable[[int], tuple[str, str, str]]
    ) -> None:
        """Skip lines for one reason; only those that are shown are described (place, message, excerpt)."""
        if not num_lines:
            return
        num_shown = min(num_lines, max(1, MAX_EXAMPLES - len(self.examples)))
        for index in range(num_shown):
            self.reject(reason, *describe(index))
        self.skipped[reason] += num_lines - num_shown

    def check(self) -> None:
        """Compare the share of skipped lines with the cap; call it at the end of a source.

        Raises:
            SourceError: the share is above the cap.
        """
        accounted = self.num_good + self.num_skipped + self.num_blank
        if accounted != self.num_lines:
            raise RuntimeError(f"a reader lost count: {self.num_lines} lines, and {accounted} accounted for")
        self._compare(self.max_bad_share, "")

    def _stop_early(self) -> None:
        if self.num_lines >= EARLY_LINES:
            far_above = max(self.max_bad_share, min(EARLY_SHARE, EARLY_FACTOR * self.max_bad_share))
            self._compare(far_above, " so far")

    def _compare(self, max_share: float, when: str) -> None:
        if self.num_skipped <= max_share * self.num_lines:
            return
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self.skipped.items()))
        shown = "\n  ".join(describe_example(example) for example in self.examples)
        raise SourceError(
            f"{self.num_skipped} of {self.num_lines} lines{when} cannot be used "
            f"({self.num_skipped / self.num_lines:.1%}, at most {self.max_bad_share:.1%} allowed): {counts}; "
            f"correct the files, or allow a larger share of bad lines. The first of them:\n  {shown}"
        )

    def merge(self, other: "Intake") -> None:
        """Add another intake's counts and examples; its policy and cap are not taken over."""
        self.num_lines += other.num_lines
        self.num_good += other.num_good
        self.num_blank += other.num_blank
        self.skipped.update(other.skipped)
        self.examples = [*self.examples, *other.examples][:MAX_EXAMPLES]

    def describe(self) -> dict[str, Any]:
        """The counts and the first bad lines, ready for JSON; `from_dict` takes it back."""
        return {
            "lines": self.num_lines,
            "good": self.num_good,
            "blank": self.num_blank,
            "skipped": dict(sorted(self.skipped.items())),
            "examples": [dict(example) for example in self.examples],
        }

    @classmethod
    def from_dict(
        cls, described: dict[str, Any], policy: Policy = "raise", max_bad_share: float = 0.01
    ) -> "Intake":
        """An intake that goes on from what `describe` gave."""
        intake = cls(policy, max_bad_share)
        intake.num_lines, intake.num_good = described["lines"], described["good"]
        intake.num_blank = described["blank"]
        intake.skipped = Counter(described["skipped"])
        intake.examples = [dict(example) for example in described["examples"]]
        return intake


def escape(text: str | Path) -> str:
    """Text that is safe to print: control characters, bidirectional marks and lone surrogates as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text)
    )


def shorten(text: str) -> str:
    """The escaped beginning of a text, at most MAX_EXCERPT characters."""
    shown = escape(text[: MAX_EXCERPT + 1])
    return shown if len(shown) <= MAX_EXCERPT else shown[: MAX_EXCERPT - 3] + "..."


def describe_example(example: dict[str, str]) -> str:
    """A bad line in words."""
    begin = f"; it begins: {example['excerpt']}" if example["excerpt"] else ""
    return f"{example['place']}: {example['message']}{begin}"


def name_choices(names: Iterable[str], limit: int = 20) -> str:
    """A list of names for a message, escaped and cut."""
    shown = [shorten(str(name)) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more

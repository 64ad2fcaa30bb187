"""Input: the raw documents of several sources, up to a limit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipes.documents import Batch
from data_pipes.reading.intake import Intake
from data_pipes.sources import Source, read_batches


def read_sources(
    sources: Sequence[Source],
    root: Path | None,
    intake: Intake,
    *,
    limit: int | None = None,
    bad_input: dict[str, Any] | None = None,
    carry: Sequence[str] = (),
) -> Iterator[tuple[int, Batch]]:
    """Read batch by batch; each comes with the number of its source.

    Args:
        sources: in order.
        root: the cache, for packages.
        intake: gets the counts of all sources; each is judged by its own.
        limit: most documents, over the sources in order, or shared out by their weights.
        bad_input: {policy, max_bad_share} of each source's own intake.
        carry: see sources.read_batches.

    Raises:
        SourceError: a source cannot be read, or too much of it is bad.
    """
    shares = share_limit(sources, limit)
    num_read = 0
    for index, source in enumerate(sources):
        left = shares[index] if shares else None
        if shares is None and limit is not None:
            left = limit - num_read
            # A source behind the limit is not even opened: it may be a download.
            if left <= 0:
                return
        own = Intake(**(bad_input or {}))
        for whole in read_batches(source, root, own, tuple(carry)):
            batch = whole if left is None else whole.head(left)
            num_read += batch.num_documents
            yield index, batch
            if left is not None:
                left -= batch.num_documents
                if left <= 0:
                    break
        own.check()
        intake.merge(own)


def share_limit(sources: Sequence[Source], limit: int | None) -> list[int] | None:
    """Most documents of each source where they have weights; None: there is no limit, or it is not shared.

    A source without a weight among others that have one is for the evaluation; it may fill the limit alone.
    """
    weights = [source.weight for source in sources]
    whole = sum(weight for weight in weights if weight is not None)
    if limit is None or not whole:
        return None
    return [limit if weight is None else max(1, round(limit * weight / whole)) for weight in weights]

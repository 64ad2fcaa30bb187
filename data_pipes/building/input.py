"""Input: the raw documents of all sources of a store, up to its limit."""

from collections.abc import Iterator
from pathlib import Path

from data_pipes.building.preparation import Preparation
from data_pipes.documents import Batch
from data_pipes.reading.intake import Intake
from data_pipes.sources import read_batches


def read_sources(preparation: Preparation, root: Path, intake: Intake) -> Iterator[tuple[int, Batch]]:
    """Read batch by batch; each comes with the number of its source.

    A limit counts over the sources in order, or is shared out by their weights.

    Args:
        preparation: the settings.
        root: the cache, for packages.
        intake: gets the counts of all sources; each is judged by its own.

    Raises:
        SourceError: a source cannot be read, or too much of it is bad.
    """
    shares = share_limit(preparation)
    num_read = 0
    for index, source in enumerate(preparation.sources):
        left = shares[index] if shares else None
        if shares is None and preparation.limit is not None:
            left = preparation.limit - num_read
            # A source behind the limit is not even opened: it may be a download.
            if left <= 0:
                return
        own = preparation.open_intake()
        for whole in read_batches(source, root, own):
            batch = whole if left is None else whole.head(left)
            num_read += batch.num_documents
            yield index, batch
            if left is not None:
                left -= batch.num_documents
                if left <= 0:
                    break
        own.check()
        intake.merge(own)


def share_limit(preparation: Preparation) -> list[int] | None:
    """Most documents of each source where they have weights; None: there is no limit, or it is not shared.

    A source without a weight among others that have one is for the evaluation; it may fill the limit alone.
    """
    weights = [source.weight for source in preparation.sources]
    whole = sum(weight for weight in weights if weight is not None)
    limit = preparation.limit
    if limit is None or not whole:
        return None
    return [limit if weight is None else max(1, round(limit * weight / whole)) for weight in weights]

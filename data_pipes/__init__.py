"""Raw text in, masked batches out. Takes plain arguments; knows neither models nor recipes.

    sources, packages, hub   files, package members and datasets -> batches of documents (documents)
    clean, split             rules that keep or drop with a reason; training or evaluation, by hash
    tokenize, pack, words    documents -> rows of pieces with word starts
    characters               documents -> rows of code points
    vocab                    a tokenizer of one's own
    store, prepare           rows on disk, memory-mapped, keyed by content
    rows, order, draws       what a row is; (seed, epoch, index) -> row; counter-based random numbers
    masking                  what is hidden: a pure function of (seed, epoch, row)
    collate, feed            rows -> tensors; the batches of each step for each rank
    yardsticks               two count tables that a trained model must beat

For example, step 7 of a run on two ranks: `order.rows_of_step` gives its rows, the same for every rank;
`order.share` gives rank 1 its micro-batches; `store` copies their pieces; `masking.hide` hides words by
(seed, epoch, row id); `collate` makes tensors. Nothing of it depends on steps 1 to 6, so a resume needs the
number 7 and nothing else.
"""

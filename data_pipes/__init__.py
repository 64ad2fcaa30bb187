"""Raw text in, masked batches out. Takes plain arguments; knows neither models nor recipes.

    sources (reading/)        files, package members and datasets -> batches of documents (documents)
    clean (cleaning/)         rules that keep, change or drop, each drop with a counted reason
    normalize (normalizing/)  terms bound into one word; align maps the new text to the old and back
    split (duplication/)      training or evaluation, by hash; duplicates and overlaps
    vocab (vocabulary/)       a tokenizer of one's own; terms that are missing in one, given to it, and judged
    tokenize (tokens/), pack  documents -> rows of pieces with word starts, or of code points
    store, prepare (building/)  rows on disk, memory-mapped, keyed by content
    stream                    a store that is trained on while it grows
    rows, order (ordering/)   what a row is; (seed, epoch, index) -> row
    masking (masks/)          what is hidden: a pure function of (seed, epoch, row)
    collate, feed             rows -> tensors; the batches of each step for each rank
    yardsticks                two count tables that a trained model must beat

For example, step 7 of a run on two ranks: `order` gives its rows, the same for every rank;
`ordering.division` gives rank 1 its micro-batches; `store` copies their pieces; `masking.hide` hides words by
(seed, epoch, row id); `collate` makes tensors. Nothing of it depends on steps 1 to 6, so a resume needs the
number 7 and nothing else.
"""

"""Ordering: the parts of `order` and `feed`.

mixture        weighted sources in one order
stream_order   training on rows while they still arrive
division       ranks and micro-batches
shapes         the few row lengths that batches are padded to
"""

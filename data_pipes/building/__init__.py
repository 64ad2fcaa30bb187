"""Building a store.

preparation   all settings that its content depends on, and their key
encode        a batch of documents as pieces, in any number of processes
builder       encoded documents as rows, from where it was stopped
writer        rows appended to flat files
"""

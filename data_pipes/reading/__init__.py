"""Reading: files, package members and hub datasets as batches of documents; bad input is counted.

kinds            what a source is: plain settings
intake           bad input: raised, or skipped and counted by reason
paths, archives  which files a source names; unpacking, with limits
lines, paragraphs, records, tables, parquet, hub, packages   one format each
columns          Arrow columns cut into batches
"""

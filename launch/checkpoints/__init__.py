"""Checkpoints: whole or absent, in the background, on a full disk, and read again by another world.

saving                  when a run is saved, what is kept, what a failure costs
contents, weights       what a checkpoint consists of
snapshot, writer        a copy of the state; the draft written from it and committed
manifest                sizes and hashes: what is whole, what is damaged, what is whose
space, rotation, removal  room on the disk; what leaves, and what never does
choice, resume          where a run starts; its state put into a job
universal, shards, partitions, origin, takeover   a checkpoint of another world
"""

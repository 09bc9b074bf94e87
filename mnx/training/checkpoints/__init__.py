"""Checkpoints of a training on many ranks: one consistent set of files per iteration.

    result/checkpoint/000007_iteration_1200/     the seventh set that was written here
        rank_0.npz                               its values, and those it shares with others
        rank_1.npz                               what is different on rank 1
        manifest.json                            written last: sizes and checksums of all of them

A folder may be seen by all ranks, or be another one in each node, with the same files for the
ranks that see it. A set counts only if each rank can read, undamaged, all that it needs.
"""

"""What encodes the shards.

local.py   this process, or one process for each device
ray.py     the actors of a Ray cluster
slurm.py   the members of a SLURM job array
engine.py  chooses one of them

All do the same tasks with the same ``ShardRunner``, and all durability lies in the cache: an engine
only schedules, and any of them finishes what another began.
"""

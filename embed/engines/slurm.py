"""The tasks of a SLURM job array share the shards among them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pal.cache.plan import ShardTask
from pal.errors import ConfigError


def share_of_this_task(tasks: Sequence[ShardTask]) -> list[ShardTask]:
    """Return what this member of a job array has to do; raises ConfigError outside of one."""
    try:
        index, first, last, step = (
            int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "STEP")
        )
    except KeyError as error:
        raise ConfigError(
            f"--executor slurm runs inside a job array, but {error.args[0]} is not set; submit it "
            f"with sbatch --array"
        ) from error
    place, workers = (index - first) // step, (last - first) // step + 1
    return [task for task in tasks if task.number % workers == place]

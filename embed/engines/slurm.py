"""The members of a SLURM job array take the shards one by one: each what nobody else has.

Nothing depends on the array: a member that is cancelled, comes late, has an odd number or was
submitted again leaves no shard to nobody, for whoever still runs takes what is left. A shard is
claimed by a lock, which dies with its process; claims only keep two from doing the same work, and
what two have done is committed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from pal.cache.plan import ShardTask
from pal.cache.records import Receipt
from pal.cache.writer import CacheWriter

CLAIMS = "claims"
"""folder of the locks, in that of the first layer's cache"""


class Claims:
    """The tasks that this process gets, one after the other, as it comes to them.

    A claim is given back once the shard is committed; those that are left, at the end of the block.
    """

    def __init__(self, writers: Sequence[CacheWriter], tasks: Sequence[ShardTask]) -> None:
        self.writers, self.tasks = list(writers), list(tasks)
        self.folder = self.writers[0].folder / CLAIMS
        self.before = {task.number: self._receipts(task) for task in self.tasks}
        self.held: dict[int, ExitStack] = {}
        self._waiting = self._claimed()

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in list(self.held):
            self.held.pop(number).close()
        with suppress(OSError):  # others hold claims, or it was never made
            self.folder.rmdir()

    def __iter__(self) -> Iterator[ShardTask]:
        return self._waiting

    def _claimed(self) -> Iterator[ShardTask]:
        """Yield tasks until a whole round finds none that is neither done nor somebody else's."""
        left = self.tasks
        while left:
            passed_over = []
            has_claimed = False
            for task in left:
                self._give_back()
                if not self._is_undone(task):
                    continue
                if self._claim(task):
                    has_claimed = True
                    yield task
                else:
                    passed_over.append(task)
            left = passed_over if has_claimed else []

    def _claim(self, task: ShardTask) -> bool:
        path = self.folder / f"{task.stem}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        claim = ExitStack()
        try:
            claim.enter_context(FileLock(path, timeout=0, thread_local=False))
        except Timeout:
            return False
        except OSError:  # a file system without locks: the work may be done twice
            pass
        claim.callback(_remove, path)  # before the lock is let go
        if not self._is_undone(task):  # done while we came to it
            claim.close()
            return False
        self.held[task.number] = claim
        return True

    def _give_back(self) -> None:
        done = [task for task in self.tasks if task.number in self.held]
        for task in done:
            if not self._is_undone(task):
                self.held.pop(task.number).close()

    def _is_undone(self, task: ShardTask) -> bool:
        """Say whether nobody has done a task since the beginning, again if it failed before."""
        is_pending = any(writer.pending([task]) for writer in self.writers)
        return is_pending and self._receipts(task) == self.before[task.number]

    def _receipts(self, task: ShardTask) -> list[Receipt | None]:
        return [writer.receipt_on_disk(task) for writer in self.writers]


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)

"""Freed memory stays with the process while it computes, and goes back to the system after that."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pal.memory import OWN

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")

FAULTS = """
import ctypes, resource, threading
import torch
from pal.memory import kept

torch.set_num_threads(1)
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, which would be counted as one each
PAGES = (64 << 20) // resource.getpagesize()

def faults(times=5, first=0):
    for _ in range(first):  # until what alignment leaves over has found its places
        torch.ones(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16 << 20)  # 64 MiB, freed at once
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / PAGES

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / PAGES

@kept()
def kept_twice():
    with kept():
        inside = faults(first=12)
    other = threading.Thread(target=kept()(faults), args=(1,))
    other.start()
    other.join()
    return inside, faults(first=12), resident()

print(faults(), *kept_twice(), resident())
"""


SET = (*OWN, "GLIBC_TUNABLES")


def measured(**environment: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        check=True, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name not in SET} | environment,
    )  # fmt: skip
    return [float(value) for value in done.stdout.split()]


def test_memory_is_filled_once_inside_and_given_back_after() -> None:
    before, inside, after_thread, held, left = measured()
    assert before > 4.5  # every time anew, page by page
    assert inside < 1.0
    assert after_thread < 1.0  # the outer block goes on when one inside, or beside, has ended
    assert held - left > 0.8  # of 64 MiB


def test_what_the_user_has_set_stays() -> None:
    before, inside, *_ = measured(MALLOC_TRIM_THRESHOLD_="131072")
    assert before > 4.5
    assert inside > 4.5

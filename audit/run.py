"""An audit from end to end: test A, test B, what they disagree about, power, verdict, files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from pal.audit.content import Judged
from pal.audit.cross_fit import CrossFit
from pal.audit.describe import CARELESS, disagreement, krippendorff_alpha, majority_labels, overruled
from pal.audit.features import Features, features_of
from pal.audit.groups import STARTS, Division, Tastes, agreement, divided
from pal.audit.ledger import Ledger
from pal.audit.load import Loaded
from pal.audit.measure import Gain, measured
from pal.audit.nulls import Population
from pal.audit.overlap_test import OverlapFound, OverlapTest
from pal.audit.page import NULL, USERS, Content, as_page
from pal.audit.pictures import draw_nulls, draw_users
from pal.audit.power import Instrument, p_of
from pal.audit.record import AuditPlan, AuditRecord, Group
from pal.audit.search import search_overlap, search_power
from pal.audit.verdict import Evidence, judged
from pal.config import AuditConfig
from pal.errors import EvaluationError
from pal.files import atomic_file, digest, file_sha256, locked
from pal.train.sharing import Numbers

Progress = Callable[[int], None]
PAGE = "audit.md"
METHOD = 1
"""another number makes all draws anew"""
FEWEST_PEOPLE, FEWEST_GROUPS = 2, 2
"""for test B"""
"""
"""

"""What a user would take in the place of stage one: sentence-transformers and its backends, each
with the same weights, or the sentence that it is not installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], tuple[np.ndarray, float]]
"""texts to features, (n, dim) float32, and the seconds that they took"""
NOT_INSTALLED = "not installed"
BASE = "sentence-transformers torch, float32"
"""whose features all others are compared with, and whose rate they are measured by"""
OPENVINO = "sentence-transformers OpenVINO, as it comes"
OPENVINO_EXACT = "sentence-transformers OpenVINO, forced to float32"
PEERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    BASE: ((), {}),
    "sentence-transformers torch, bfloat16": ((), {"model_kwargs": {"dtype": "bfloat16"}}),
    "sentence-transformers ONNX, float32": (
        ("onnxruntime", "optimum.onnxruntime"),
        {"backend": "onnx", "model_kwargs": {"provider": "CPUExecutionProvider", "export": True}},
    ),
    OPENVINO: (
        ("openvino", "optimum.intel"),
        {"backend": "openvino", "model_kwargs": {"export": True}},
    ),
    OPENVINO_EXACT: (
        ("openvino", "optimum.intel"),
        {
            "backend": "openvino",
            "model_kwargs": {"export": True, "ov_config": {"INFERENCE_PRECISION_HINT": "f32"}},
        },
    ),
}
"""packages and options of each"""


def is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def load_peer(name: str, folder: Path, length: int, device: str, batch: int) -> Encode | str:
    """Return what encodes texts under a model's folder, or why it cannot."""
    packages, options = PEERS[name]
    missing = [one for one in ("sentence_transformers", *packages) if not is_there(one)]
    if missing:
        return NOT_INSTALLED
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder), device=device, **options)
    except Exception as error:  # of whatever the backend is made of
        return f"does not load: {type(error).__name__}: {error}".splitlines()[0][:120]
    model.max_seq_length = length

    def encode(texts: list[str]) -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        found: np.ndarray = model.encode(texts, batch_size=batch, convert_to_numpy=True)
        return found.astype(np.float32), time.perf_counter() - began

    return encode

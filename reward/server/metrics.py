"""Counters for Prometheus, in a registry of the service's own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""upper ends of the histogram's steps"""


class Metrics:
    """What a service counts. Labels never hold a path as it was sent, which may name a user."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"pal_{name}", text, labels, registry=self.registry)

        self.requests = counter("requests", "Requests answered.", ("path", "code"))
        self.rows = counter("rows", "Rows scored.")
        self.rows_failed = counter("rows_failed", "Rows that could not be scored.")
        self.batches = counter("batches", "Batches that the model scored.")
        self.unknown_users = counter("unknown_users", "Rows of users who are not known.")
        self.prompts_cut = counter("prompts_cut", "Prompts whose beginning OpenRLHF has cut.")
        self.seconds = Histogram(
            "pal_request_seconds",
            "Seconds from the head of a request to the end of its reply.",
            ("path",),
            registry=self.registry,
            buckets=SECONDS,
        )
        self.accepted = 0
        """requests whose head has arrived"""
        self.answered = 0

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a number that is asked for when it is read."""
        Gauge(f"pal_{name}", text, registry=self.registry).set_function(value)

    def count(self, path: str, code: int, seconds: float, is_answered: bool) -> None:
        """Count a request that is over."""
        if is_answered:
            self.seconds.labels(path).observe(seconds)
            self.answered += 1
            self.requests.labels(path, str(code)).inc()

    def text(self) -> str:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self.registry).decode()

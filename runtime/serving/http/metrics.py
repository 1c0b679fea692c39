"""What a service tells Prometheus of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from runtime.results import Caption
from runtime.serving.http.admission import Admission
from runtime.serving.http.store import FeatureStore

CONTENT_TYPE = CONTENT_TYPE_LATEST
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "POST")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters and gauges of one service, in a registry of their own."""

    def __init__(self, queue: Admission, store: FeatureStore) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Histogram(
            "patchcaption_request_seconds",
            "From a request's first byte to its answer's last.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._regions = Counter(
            "patchcaption_regions", "Regions that were asked.", ("outcome",), registry=self._registry
        )
        self._stages = Histogram(
            "patchcaption_stage_seconds",
            "Encoding an image; describing the regions of a request, with what others ask at the same time.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._gauge("queue_requests", "Requests that are answered or wait.", lambda: queue.waiting)
        self._gauge("queue_bytes", "Bytes of their bodies.", lambda: queue.num_bytes)
        self._gauge("features", "Feature maps that are kept.", lambda: len(store))
        self._gauge("features_bytes", "Bytes of the feature maps, with their images.", lambda: store.num_bytes)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: the template of its path, "/v1/features/{id}/captions".
        """
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).observe(seconds)

    def encoded(self, ms: float) -> None:
        """Count an image."""
        self._stages.labels("encode").observe(ms / 1000)

    def described(self, captions: Sequence[Caption], ms: float) -> None:
        """Count the regions of a request."""
        wrong = sum(caption.error is not None for caption in captions)
        self._regions.labels("captioned").inc(len(captions) - wrong)
        self._regions.labels("error").inc(wrong)
        self._stages.labels("describe").observe(ms / 1000)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        Gauge(f"patchcaption_{name}", help, registry=self._registry).set_function(value)

"""What a service does with a captioner: encodes images in threads, and describes regions of all clients together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from runtime.captioner import Captioner
from runtime.features import FeatureMap
from runtime.options import DecodingOptions, PoolingOptions, check_threads, split_options
from runtime.regions import Crop
from runtime.regions.rows import RegionRow
from runtime.results import Caption
from runtime.serving.http.encoding import EncodingQueue
from runtime.serving.http.metrics import Metrics
from runtime.serving.http.settings import ServiceLimits
from runtime.serving.http.store import FeatureStore
from runtime.serving.http.timed import Timed, ms_since
from runtime.serving.limits import rows_within, work_of
from runtime.system.closeable import Closeable
from runtime.system.threads import call_in_thread


class CaptionService(Closeable):
    """One captioner for all clients. Its methods belong to an event loop, which stays free.

    Args:
        workers: threads that encode images, and share the bundle.

    Attributes:
        captioner: which stays open when the service is closed.
        store: the feature maps that are kept.
        is_ending: whether no more requests should be sent.
    """

    def __init__(
        self, captioner: Captioner, limits: ServiceLimits, store: FeatureStore, metrics: Metrics, workers: int
    ) -> None:
        check_threads("workers", workers)
        self.captioner, self.limits, self.store, self.metrics = captioner, limits, store, metrics
        self.is_ending = False
        # One that asks alone need not wait for others: those who come while it is decoded are the next batch.
        self._batching = captioner.batching(max_wait_ms=0)
        self._encoding = EncodingQueue(captioner, workers, limits.pixels)

    @property
    def is_ready(self) -> bool:
        """Whether requests may be sent."""
        return not self.is_ending and self._batching.is_open

    async def encode(self, image: bytes) -> Timed[FeatureMap]:
        """Encode an image, together with those that others ask for at the same time.

        Raises:
            OverLimitError: it has more pixels than the limit.
            ImageError: it cannot be read.
        """
        encoded = await asyncio.wrap_future(await call_in_thread(lambda: self._encoding.submit(image)))
        self.metrics.encoded(encoded.ms)
        return encoded

    async def describe(
        self, features: FeatureMap, regions: Any, options: Mapping[str, Any], *, is_small: bool = False
    ) -> Timed[list[Caption]]:
        """Caption the regions of one image, together with those that others ask for.

        Args:
            regions: a JSON value: the regions of one image in any form.
            options: those of `Captioner.describe`.
            is_small: whether the regions are so few that they are read and pooled sooner than a thread is there for it.

        Returns:
            A caption for each region; of one that cannot be, the error.

        Raises:
            OverLimitError: there are more than the limits allow.
            RegionError: what is given is in no form of regions.
            OptionError: an option has no such value.
        """
        pooling, decoding = split_options(options, PoolingOptions, DecodingOptions)
        start = perf_counter()

        def read() -> list[RegionRow]:
            encodes_each = self.captioner.pipeline.encodes_each_region(pooling)
            return rows_within(self.limits, regions, features.image_whs[0], decoding.beams, encodes_each)

        is_quick = is_small and not work_of(regions)[1]  # a few run lengths may be a large mask
        rows = read() if is_quick else await call_in_thread(read)
        submit = partial(self._batching.submit, features, rows, on_bad="skip", **options)
        answer = submit() if is_quick and _is_light(rows, pooling) else await call_in_thread(submit)
        captions = await asyncio.wrap_future(answer)
        described = Timed(captions, ms_since(start))
        self.metrics.described(captions, described.ms)
        return described

    def close(self) -> None:
        """End the threads; requests that wait for captions get them."""
        self._encoding.close()
        self._batching.close()
        self.store.clear()


def _is_light(rows: Sequence[RegionRow], pooling: PoolingOptions) -> bool:
    """Return whether regions are pooled by sums alone, without a pass through the backbone or the memory bank."""
    return pooling == PoolingOptions() and not any(isinstance(row.region, Crop) for row in rows)

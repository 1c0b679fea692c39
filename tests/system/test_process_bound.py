"""What belongs to one process says so when it is pickled or copied; what can be sent arrives as it was."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
from PIL import Image

from runtime import Box, Caption, Captioner, FeatureMap, PatchcaptionError, Region, WholeImage

REGIONS: list[Region] = [Box(276, 174, 507, 399), WholeImage()]


@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_what_holds_engines_threads_or_files_is_not_copied(
    demo: Captioner, sample_image: Image.Image, way: Callable[[object], object]
) -> None:
    with demo.batching() as batching, demo.stream([sample_image], REGIONS) as stream:
        for one in (demo, demo.pipeline, demo.pipeline.bundle, batching, stream):
            with pytest.raises(PatchcaptionError, match="call Captioner.load in each process") as error:
                way(one)
            assert isinstance(error.value, TypeError), "what pickle raises for all that cannot be pickled"
            assert str(error.value).startswith(f"a {type(one).__name__} cannot be pickled, copied or sent")


def test_a_shallow_copy_shares_what_it_holds(demo: Captioner) -> None:
    assert copy.copy(demo).pipeline is demo.pipeline


def test_a_captioner_is_not_sent_to_another_process(demo: Captioner) -> None:
    process = multiprocessing.get_context("spawn").Process(target=print, args=(demo,))
    with pytest.raises(PatchcaptionError, match="a Captioner cannot be pickled, copied or sent to another process"):
        process.start()


@pytest.mark.slow
def test_features_and_captions_arrive_in_another_process(demo: Captioner, sample_image: Image.Image) -> None:
    features = demo.encode([sample_image, sample_image])
    captions = demo.describe(features[1], REGIONS, n_best=2)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        arrived, returned = pool.submit(_echo, features[1], captions).result(timeout=60)
    assert demo.describe(arrived, REGIONS, n_best=2) == captions == returned


def _echo(features: FeatureMap, captions: list[Caption]) -> tuple[FeatureMap, list[Caption]]:
    assert features.patches.shape[0] == 1
    return features, captions

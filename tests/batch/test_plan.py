from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batch.image_names import FoundImage
from runtime.batch.plan import ALL, Plan, PlannedImage, Shard, write_plan
from runtime.batch.region_files import RegionEntry
from runtime.errors import RegionError

BOX, OTHER = [[1, 2, 3, 4]], [[5, 6, 7, 8]]


def plan(
    folder: Path, images: Sequence[str], regions: Sequence[RegionEntry], shard: Shard = ALL, name: str = "plan"
) -> Plan:
    found = [FoundImage(0, line, image) for line, image in enumerate(images)]
    write_plan(folder / name, found, regions, shard, "regions.json")
    return Plan(folder / name)


def planned(plan: Plan) -> list[PlannedImage]:
    return [image for part in plan.parts(2) for image in part.images]


def regions_of(plan: Plan) -> dict[str, object]:
    return {image.name: image.problem or list(image.regions) for image in planned(plan)}


def test_images_come_in_order_and_once_in_parts(tmp_path: Path) -> None:
    whole = plan(tmp_path, ["c.jpg", "a.jpg", "b.jpg", "a.jpg"], [RegionEntry(None, BOX)])
    assert [(part.number, [image.name for image in part.images]) for part in whole.parts(2)] == [
        (0, ["c.jpg", "a.jpg"]),
        (1, ["b.jpg"]),
    ]
    assert [part.number for part in whole.parts(1, skip={0, 2})] == [1]
    assert (whole.num_images, whole.num_parts(2), whole.is_of_every_image) == (3, 2, True)
    assert all(image.regions == (BOX,) for image in planned(whole))


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("/data/a/b.jpg", "a/b.jpg"),
        ("/data/a/b.jpg", "b.jpg"),
        ("b.jpg", "/elsewhere/a/b.jpg"),
        ("x/b.jpg", "y/b.jpg"),
        ("a/b.jpg", "./a//b.jpg"),
        ("x/a/b.jpg", "a/b"),
        ("VOC/2007_000027.jpg", "2007_000027"),
        ("val/000000000042.jpg", "42"),
    ],
)
def test_regions_are_found_by_the_end_of_a_path(tmp_path: Path, image: str, key: str) -> None:
    assert regions_of(plan(tmp_path, [image], [RegionEntry(key, BOX), RegionEntry("c.jpg", OTHER)])) == {image: [BOX]}


def test_the_longest_end_of_a_path_counts(tmp_path: Path) -> None:
    entries = [RegionEntry("b.jpg", OTHER), RegionEntry("a/b.jpg", BOX)]
    assert regions_of(plan(tmp_path, ["x/a/b.jpg", "b.jpg"], entries)) == {"x/a/b.jpg": [BOX], "b.jpg": [OTHER]}


def test_what_is_said_of_an_image_in_several_places_comes_together_in_order(tmp_path: Path) -> None:
    entries = [RegionEntry("a.jpg", BOX), RegionEntry("b.jpg", []), RegionEntry("a.jpg", OTHER)]
    assert regions_of(plan(tmp_path, ["a.jpg", "b.jpg"], entries)) == {"a.jpg": [BOX, OTHER], "b.jpg": []}


def test_images_of_which_nothing_is_said_and_the_reverse_are_counted(tmp_path: Path) -> None:
    found = plan(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [RegionEntry("a.jpg", BOX), RegionEntry("d.jpg", BOX)])
    assert (found.num_without_regions, found.num_unknown) == (2, 1)


def test_regions_that_may_be_of_several_images_are_of_none(tmp_path: Path) -> None:
    problems = regions_of(plan(tmp_path, ["x/a.jpg", "y/a.jpg", "b.jpg"], [RegionEntry("a.jpg", BOX)]))
    assert "several images end with a.jpg" in str(problems["x/a.jpg"])
    assert "several images end with a.jpg" in str(problems["y/a.jpg"])
    assert problems["b.jpg"] == []
    found = plan(tmp_path, ["a.jpg", "y/a.jpg"], [RegionEntry("a.jpg", BOX)], name="exact")
    assert regions_of(found)["a.jpg"] == [BOX]
    found = plan(tmp_path, ["a.jpg"], [RegionEntry("x/a.jpg", BOX), RegionEntry("y/a.jpg", OTHER)], name="keys")
    assert "may be those of x/a.jpg or of y/a.jpg" in str(regions_of(found)["a.jpg"])


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [os.fsdecode(b"\xff\xfe.jpg"), "ü.jpg", "'; DROP TABLE images; --.jpg"]
    found = plan(tmp_path, names, [RegionEntry(name, BOX) for name in names])
    assert regions_of(found) == {name: [BOX] for name in names}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([RegionEntry(None, BOX), RegionEntry("a.jpg", BOX)], "regions of every image, or of images by their names"),
        ([RegionEntry("a.jpg", BOX), RegionEntry(None, BOX)], "regions of every image, or of images by their names"),
        ([RegionEntry(None, [{"kind": "circle"}])], 'regions.json: region 0: region: expected as "kind"'),
        ([RegionEntry(None, "text")], "regions.json: regions: expected a list"),
        ([RegionEntry("z.jpg", BOX)], "of images such as 'z.jpg', which are not among them"),
        ([], "expected regions of the images, got none"),
    ],
)
def test_regions_that_cannot_be_those_of_the_images(tmp_path: Path, entries: list[RegionEntry], message: str) -> None:
    with pytest.raises(RegionError, match=message):
        plan(tmp_path, ["a.jpg"], entries)


@given(st.sets(st.text(min_size=1), max_size=30), st.integers(1, 9))
def test_shards_share_the_images(names: set[str], count: int) -> None:
    shares = [{name for name in names if Shard(number, count).has(name)} for number in range(1, count + 1)]
    assert sum(map(len, shares)) == len(names)
    assert set().union(*shares) == names


def test_shards_are_of_about_one_size_and_do_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    names = [f"{number:06d}.jpg" for number in range(4000)]
    shares = [[name for name in names if Shard(number, 8).has(name)] for number in range(1, 9)]
    assert all(400 < len(share) < 600 for share in shares)
    found = plan(tmp_path, shares[2][:5] + names[:20], [RegionEntry(None, BOX)], Shard(3, 8))
    assert {image.name for image in planned(found)} == {*shares[2][:5], *(set(names[:20]) & set(shares[2]))}


def test_the_digest_is_of_the_images_and_their_regions(tmp_path: Path) -> None:
    def digest(name: str, images: list[str], regions: list[RegionEntry]) -> str:
        return plan(tmp_path, images, regions, name=name).sha256

    first = digest("1", ["a.jpg", "b.jpg"], [RegionEntry("a.jpg", BOX)])
    assert digest("2", ["a.jpg", "b.jpg"], [RegionEntry("a.jpg", BOX)]) == first
    assert digest("3", ["a.jpg"], [RegionEntry("a.jpg", BOX)]) != first
    assert digest("4", ["a.jpg", "b.jpg"], [RegionEntry("a.jpg", OTHER)]) != first

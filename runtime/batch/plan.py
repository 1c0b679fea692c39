"""What is to be captioned: a list of images with the regions of each, in a file that is written once and read in parts.

It is a database of SQLite, as a million regions need not fit into memory, and a run that goes on later has to find the
images and their regions as the first one found them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from runtime.batch.image_names import FoundImage, as_unicode
from runtime.batch.region_files import RegionEntry
from runtime.errors import RegionError
from runtime.regions.detections import checked_rows
from runtime.system.closeable import Closeable

_IMAGES_AT_ONCE = 10_000
_MAX_DIGITS = 30
_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE;
CREATE TABLE found (argument INTEGER, line INTEGER, name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE images (number INTEGER PRIMARY KEY, name BLOB, key TEXT, problem TEXT);
CREATE TABLE keys (key TEXT PRIMARY KEY, base TEXT) WITHOUT ROWID;
CREATE TABLE regions (number INTEGER PRIMARY KEY, key TEXT, data TEXT);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
"""
_INDEXES = """
CREATE INDEX keys_by_base ON keys (base);
CREATE INDEX regions_by_key ON regions (key);
"""


@dataclass(frozen=True)
class Shard:
    """One of several runs that share the images; which it is of depends on an image's name alone.

    Attributes:
        number: from 1 on.
        count: of all.
    """

    number: int = 1
    count: int = 1

    def has(self, name: str) -> bool:
        """Return whether an image is of this shard."""
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1


ALL = Shard()
"""The one shard of all images."""


@dataclass(frozen=True)
class PlannedImage:
    """An image that is to be captioned.

    Attributes:
        name: its path.
        regions: of it, each entry in a form that `runtime.regions.detections.as_rows` takes.
        problem: None; or why it is not known which regions are its.
    """

    name: str
    regions: tuple[Any, ...]
    problem: str | None = None


@dataclass(frozen=True)
class PlannedPart:
    """Some of the images, which are captioned together.

    Attributes:
        number: from 0 on.
    """

    number: int
    images: tuple[PlannedImage, ...]


def write_plan(
    file: Path, images: Iterable[FoundImage], regions: Iterable[RegionEntry], shard: Shard, regions_name: str
) -> None:
    """Write a plan of the images of a shard, each once.

    Args:
        regions: of every image, or by their names.
        regions_name: what errors call them.

    Raises:
        ImageError: from ``images``.
        RegionError: from ``regions``; some are of every image and some are not; those of every image are none; or none
            of those by name is of one of the images.
    """
    database = sqlite3.connect(f"file:{_quoted(file)}?nolock=1", uri=True)
    try:
        database.executescript(_SCHEMA)
        _add_images(database, images, shard)
        _add_regions(database, regions, regions_name)
        database.executescript(_INDEXES)
        _match(database, regions_name, has_all_images=shard.count == 1)
        database.execute("DROP TABLE found")
        database.execute("INSERT INTO facts VALUES ('sha256', ?)", [_sha256(database)])
        database.commit()
    finally:
        database.close()


class Plan(Closeable):
    """The plan in a file, which any number of processes may read.

    Attributes:
        sha256: of the names of all images and their regions, in order.
        num_images: of the shard.
        num_without_regions: images that the file of regions says nothing of.
        num_unknown: images that the file of regions has, but the shard has not.
    """

    def __init__(self, file: Path) -> None:
        # Immutable: network file systems may have no locks.
        self._database = sqlite3.connect(f"file:{_quoted(file)}?mode=ro&immutable=1", uri=True)
        facts = dict(self._database.execute("SELECT name, value FROM facts"))
        self.sha256: str = facts["sha256"]
        self._of_every_image = json.loads(facts["regions"]) if "regions" in facts else None
        self.num_images = self._count("images")
        self.num_without_regions = (
            0 if self.is_of_every_image else self._count("images WHERE key IS NULL AND problem IS NULL")
        )
        self.num_unknown = self._count("keys WHERE key NOT IN (SELECT key FROM images WHERE key IS NOT NULL)")

    @property
    def is_of_every_image(self) -> bool:
        """Whether all images have the same regions."""
        return self._of_every_image is not None

    def num_parts(self, size: int) -> int:
        """Return how many parts of a size the images are."""
        return -(-self.num_images // size)

    def parts(self, size: int, skip: Iterable[int] = ()) -> Iterator[PlannedPart]:
        """Yield the images in parts of a size, but for parts with some numbers."""
        left_out = set(skip)
        for number in range(self.num_parts(size)):
            if number not in left_out:
                yield PlannedPart(number, tuple(self._images(number * size, size)))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _images(self, first: int, count: int) -> Iterator[PlannedImage]:
        rows = self._database.execute(
            "SELECT name, key, problem FROM images WHERE number >= ? AND number < ? ORDER BY number",
            [first, first + count],
        )
        for name, key, problem in rows.fetchall():
            yield PlannedImage(os.fsdecode(name), tuple(self._regions(key)), problem)

    def _regions(self, key: str | None) -> Iterator[Any]:
        if self._of_every_image is not None:
            yield self._of_every_image
            return
        for (data,) in self._database.execute("SELECT data FROM regions WHERE key = ? ORDER BY number", [key]):
            yield json.loads(data)

    def _count(self, what: str) -> int:
        return int(self._database.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def _add_images(database: sqlite3.Connection, images: Iterable[FoundImage], shard: Shard) -> None:
    found = ((one.argument, one.line, os.fsencode(one.name)) for one in images)
    database.executemany("INSERT OR IGNORE INTO found VALUES (?, ?, ?)", found)
    database.create_function("is_of_shard", 1, lambda name: shard.has(os.fsdecode(name)), deterministic=True)
    database.execute(
        "INSERT INTO images SELECT row_number() OVER (ORDER BY argument, line, name) - 1, name, NULL, NULL "
        "FROM found WHERE is_of_shard(name)"
    )


def _add_regions(database: sqlite3.Connection, regions: Iterable[RegionEntry], regions_name: str) -> None:
    entries = iter(regions)
    first = next(entries, None)
    if first is not None and first.image is None:
        if next(entries, None) is not None:
            raise RegionError(f"{regions_name}: expected regions of every image, or of images by their names, got both")
        _check(first.regions, regions_name)
        database.execute("INSERT INTO facts VALUES ('regions', ?)", [_as_text(first.regions)])
        return
    for entry in entries if first is None else chain([first], entries):
        if entry.image is None:
            raise RegionError(f"{regions_name}: expected regions of every image, or of images by their names, got both")
        key = as_unicode(os.path.normpath(entry.image))
        database.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", [key, PurePath(key).name])
        if entry.regions:
            database.execute("INSERT INTO regions (key, data) VALUES (?, ?)", [key, _as_text(entry.regions)])


def _check(regions: Any, regions_name: str) -> None:
    """Raise RegionError if regions of every image are none."""
    try:
        checked_rows(regions)
    except RegionError as error:
        raise RegionError(f"{regions_name}: {error}") from None


def _match(database: sqlite3.Connection, regions_name: str, has_all_images: bool) -> None:
    """Find out which regions are each image's: those of its path, or of a part of it that ends with the file's name."""
    if database.execute("SELECT 1 FROM facts WHERE name = 'regions'").fetchone():
        return
    for number, name in _all_images(database):
        key, problem = _key_of(database, os.fsdecode(name))
        if key is not None or problem is not None:
            database.execute("UPDATE images SET key = ?, problem = ? WHERE number = ?", [key, problem, number])
    database.execute("CREATE INDEX images_by_key ON images (key)")
    shared = "SELECT key FROM images WHERE key IS NOT NULL GROUP BY key HAVING count(*) > 1"
    database.execute(
        "UPDATE images SET problem = 'its regions may be another image''s: several images end with ' || key || "
        f"'; name images in the regions with their folders', key = NULL WHERE key IN ({shared}) "
        "AND key <> CAST(name AS TEXT)"
    )
    if (
        has_all_images
        and not database.execute("SELECT 1 FROM images WHERE key IS NOT NULL OR problem NOT NULL").fetchone()
    ):
        example = database.execute("SELECT key FROM keys").fetchone()
        of = f"of images such as {example[0]!r}" if example else "none"
        raise RegionError(f"{regions_name}: expected regions of the images, got {of}, which are not among them")


def _all_images(database: sqlite3.Connection) -> Iterator[tuple[int, bytes]]:
    first = 0
    while rows := database.execute(
        "SELECT number, name FROM images WHERE number >= ? AND number < ?", [first, first + _IMAGES_AT_ONCE]
    ).fetchall():
        yield from rows
        first += _IMAGES_AT_ONCE


def _key_of(database: sqlite3.Connection, name: str) -> tuple[str | None, str | None]:
    """Return the name by which an image has regions, and else why it is not known."""
    for key in _endings(name):
        if database.execute("SELECT 1 FROM keys WHERE key = ?", [key]).fetchone():
            return key, None
    base = as_unicode(PurePath(name).name)
    found = [key for (key,) in database.execute("SELECT key FROM keys WHERE base = ? LIMIT 2", [base])]
    if len(found) == 2:
        return None, f"its regions may be those of {found[0]} or of {found[1]}; name it in the regions with its folder"
    return (found[0] if found else None), None


def _endings(name: str) -> Sequence[str]:
    """Return what an image may be called: its path, and what is left without its first folders, down to its own name.

    After these come the same without the file's ending, and the number that it is, as data sets call their images.
    """
    path, stem = PurePath(name), PurePath(name).stem
    whole = [name, *(os.path.join(*path.parts[first:]) for first in range(1, len(path.parts)))]
    without = [one.removesuffix(path.suffix) for one in whole]
    numbers = [str(int(stem))] if stem.isascii() and stem.isdecimal() and len(stem) <= _MAX_DIGITS else []
    return [as_unicode(one) for one in (*whole, *without, *numbers)]


def _sha256(database: sqlite3.Connection) -> str:
    digest = hashlib.sha256()
    facts = "SELECT value FROM facts"
    images = "SELECT name, key, problem FROM images ORDER BY number"
    regions = "SELECT key, data FROM regions ORDER BY number"
    for query in (facts, images, regions):
        for row in database.execute(query):
            digest.update(repr(row).encode())
    return digest.hexdigest()


def _as_text(regions: Any) -> str:
    return json.dumps(regions, separators=(",", ":"), default=str)  # str: of what tables hold beside regions


def _quoted(file: Path) -> str:
    return str(file.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")

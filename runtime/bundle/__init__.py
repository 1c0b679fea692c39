"""The artefact: a folder of graphs, memory bank, tokenizer and manifest. What export/ and runtime/ agree on."""

from runtime.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    Architecture,
    Build,
    BundleBackend,
    DecoderSettings,
    EnginePrecision,
    EngineRecord,
    FileRecord,
    Manifest,
    MemoryPrecision,
    MemorySettings,
    PlanHardware,
    PlanRecord,
    Shape,
    ShapeRange,
)
from runtime.bundle.reading import Bundle, sha256_of
from runtime.bundle.writing import new_bundle, record_files, write_manifest

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "Architecture",
    "Build",
    "Bundle",
    "BundleBackend",
    "DecoderSettings",
    "EnginePrecision",
    "EngineRecord",
    "FileRecord",
    "Manifest",
    "MemoryPrecision",
    "MemorySettings",
    "PlanHardware",
    "PlanRecord",
    "Shape",
    "ShapeRange",
    "new_bundle",
    "record_files",
    "sha256_of",
    "write_manifest",
]

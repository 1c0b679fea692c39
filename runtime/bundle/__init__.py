"""The artefact: a folder of graphs, memory bank, tokenizer and manifest. What export/ and runtime/ agree on."""

from runtime.bundle.contract import GraphContract
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.held_file import HeldFile
from runtime.bundle.manifest import (
    MANIFEST,
    SCHEMA,
    BackboneConfig,
    BuildInfo,
    BundleBackend,
    DecoderConfig,
    EngineName,
    EnginePrecision,
    EngineRecord,
    FileRecord,
    Manifest,
    MemoryConfig,
    PlanHardware,
    PlanProduct,
    PlanRecord,
    Preprocessing,
    Shape,
    ShapeRange,
    TokenLayout,
)
from runtime.bundle.reading import Bundle, sha256_of
from runtime.bundle.writing import new_bundle, record_files, write_manifest

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "BackboneConfig",
    "BuildInfo",
    "Bundle",
    "BundleBackend",
    "DecoderConfig",
    "EngineFiles",
    "EngineName",
    "EnginePrecision",
    "EngineRecord",
    "FileRecord",
    "GraphContract",
    "HeldFile",
    "Manifest",
    "MemoryConfig",
    "PlanHardware",
    "PlanProduct",
    "PlanRecord",
    "Preprocessing",
    "Shape",
    "ShapeRange",
    "TokenLayout",
    "new_bundle",
    "record_files",
    "sha256_of",
    "write_manifest",
]

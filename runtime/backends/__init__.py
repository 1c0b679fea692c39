"""Backends execute graphs: one file a backend behind one interface, chosen by name."""

from runtime.backends.base import Backend, BindableEngine, Engine, EngineReport, LazyEngine
from runtime.backends.registry import BACKEND_NAMES, BACKENDS, PRECISIONS, BackendName
from runtime.backends.selection import open_backend, select_backend

__all__ = [
    "BACKENDS",
    "BACKEND_NAMES",
    "PRECISIONS",
    "Backend",
    "BackendName",
    "BindableEngine",
    "Engine",
    "EngineReport",
    "LazyEngine",
    "open_backend",
    "select_backend",
]

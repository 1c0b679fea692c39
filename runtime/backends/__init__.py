"""Backends execute graphs: one file a backend behind one interface, chosen by name."""

from runtime.backends.base import Backend, BindableEngine, Engine, EngineReport, LazyEngine
from runtime.backends.registry import BACKEND_NAMES, BACKENDS, PRECISION_NAMES, PRECISIONS, BackendName
from runtime.backends.selection import Selection, open_backend, open_selected, select_backend

__all__ = [
    "BACKENDS",
    "BACKEND_NAMES",
    "PRECISIONS",
    "PRECISION_NAMES",
    "Backend",
    "BackendName",
    "BindableEngine",
    "Engine",
    "EngineReport",
    "LazyEngine",
    "Selection",
    "open_backend",
    "open_selected",
    "select_backend",
]

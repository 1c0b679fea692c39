"""Admits graphs: only what the exporter writes is opened by an executor.

Executors are written for graphs of friends. Others crash them, make them allocate or compute without end, or read and
run what is not theirs. So a graph is read strictly (`onnx_file`), its operators are looked up in a table of those that
the exporter writes (`operators`), and its shapes are followed from the inputs of its contract to the outputs
(`shape_rules`), for all sizes of the axes that are chosen at run time (`sizes`). What does not fit is refused, and so
is what needs more than the model that the manifest describes (`contract`). That takes milliseconds, and memory in
proportion to `onnx_file.MAX_FILE_BYTES` at most.
"""

from runtime.bundle.admission.admission import admit
from runtime.bundle.admission.contract import EngineContract, engine_contract
from runtime.bundle.admission.onnx_file import OnnxGraph, read_onnx_file

__all__ = ["EngineContract", "OnnxGraph", "admit", "engine_contract", "read_onnx_file"]

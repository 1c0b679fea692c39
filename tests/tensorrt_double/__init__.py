"""A stand-in for NVIDIA's `tensorrt` where there is no GPU: the names of one version of it, and its contract.

NVIDIA's parser and builder, those of TensorRT for RTX, say which graphs and profiles are refused; they need no GPU. The
plan holds the ONNX graph, and ONNX Runtime runs it on the CPU, on the memory at the addresses that it is given. What
TensorRT leaves undefined or answers with a crash is a `ContractError` here.
"""

from tests.tensorrt_double.contract import ContractError, Faults
from tests.tensorrt_double.package import Double, tensorrt_double

__all__ = ["ContractError", "Double", "Faults", "tensorrt_double"]

"""The names of NVIDIA's `tensorrt_rtx` that this project may use and `tensorrt` lacks, written by hand."""

from typing import ClassVar

import tensorrt

class BuilderFlag(tensorrt.BuilderFlag):
    REQUIRE_USER_ALLOCATION: ClassVar[BuilderFlag]

class ComputeCapability(tensorrt.Enumeration):
    SM75: ClassVar[ComputeCapability]
    SM86: ClassVar[ComputeCapability]
    SM89: ClassVar[ComputeCapability]
    SM120: ClassVar[ComputeCapability]
    SM121: ClassVar[ComputeCapability]

class IBuilderConfig(tensorrt.IBuilderConfig):
    num_compute_capabilities: int
    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool: ...

class IRuntimeCache:
    def serialize(self) -> tensorrt.IHostMemory | None: ...
    def deserialize(self, blob: bytes) -> bool: ...

class DynamicShapesKernelSpecializationStrategy(tensorrt.Enumeration):
    LAZY: ClassVar[DynamicShapesKernelSpecializationStrategy]
    EAGER: ClassVar[DynamicShapesKernelSpecializationStrategy]

class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: DynamicShapesKernelSpecializationStrategy
    def set_execution_context_allocation_strategy(
        self, strategy: tensorrt.ExecutionContextAllocationStrategy = ...
    ) -> None: ...
    def create_runtime_cache(self) -> IRuntimeCache | None: ...
    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool: ...

class IExecutionContext(tensorrt.IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool: ...

class ICudaEngine(tensorrt.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig | None: ...

"""Stage 4: region vectors -> text space, as weighted sums of the caption embeddings near them."""

from runtime.memory.bank import MemoryBank
from runtime.memory.kernels import kernel_names
from runtime.memory.match import MemoryMatch
from runtime.memory.projector import Projector, load_bank, projector_of

__all__ = ["MemoryBank", "MemoryMatch", "Projector", "kernel_names", "load_bank", "projector_of"]

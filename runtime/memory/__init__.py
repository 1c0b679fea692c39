"""Stage 4: region vectors -> text space, as weighted sums of the caption embeddings near them."""

from runtime.memory.bank import MemoryBank, MemoryMatch

__all__ = ["MemoryBank", "MemoryMatch"]

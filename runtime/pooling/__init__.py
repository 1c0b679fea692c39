"""Stage 3: the tokens of images -> region vectors."""

from runtime.pooling.pooler import Pooler
from runtime.pooling.reencoder import RegionReencoder

__all__ = ["Pooler", "RegionReencoder"]

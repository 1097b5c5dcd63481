"""Text in, packed token batches out: sources, tokenising, the on-disk cache, the held-out split, deterministic order."""

from hybridattn.data.batch import Batch
from hybridattn.data.token_data import TokenData

__all__ = ["Batch", "TokenData"]

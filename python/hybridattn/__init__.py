"""hybridattn: pretrained softmax Transformers into hybrids of softmax and linear attention."""

import torch  # noqa: F401  (before _C: it loads the libraries that _C links to)

from hybridattn import _C  # noqa: F401  (registers torch.ops.hybridattn)

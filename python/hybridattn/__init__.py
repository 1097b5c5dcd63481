"""hybridattn: turn a pretrained softmax Transformer into a hybrid of softmax and linear attention.

    import hybridattn as ha
    student = ha.convert(teacher, mixer="gated_deltanet")
    ha.align(student, teacher, data, ha.presets.align("paper", tokens=100_000_000))
    scores = ha.score_layers(student, teacher, data)
    hybrid = ha.keep_softmax(student, teacher, scores.top(fraction=0.25))
    ha.match(hybrid, teacher, data, ha.presets.match("paper"))
    hybrid.save_pretrained("out")

Importing this package registers the ops (`torch.ops.hybridattn`), and the hybrid with Transformers' Auto classes, so
that `AutoModelForCausalLM.from_pretrained("out")` works. Everything else is imported when it is first used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hybridattn.installation import get_cmake_dir, get_include, load_compiled_module

__version__: str = load_compiled_module().__version__

# The function shares its name with its module, so it must be bound after that module was imported: eagerly.
if find_spec("hybridattn.convert"):
    import hybridattn.hf  # noqa: F401
    from hybridattn.convert import convert, keep_softmax, sliding_window

if TYPE_CHECKING:
    from hybridattn import _C as _C
    from hybridattn import data, distill, evaluate, nn, ops, report, select
    from hybridattn.calibration.calibrate import calibrate
    from hybridattn.data import TokenData
    from hybridattn.distill import presets
    from hybridattn.distill.align import align
    from hybridattn.distill.finetune import finetune
    from hybridattn.distill.match import match
    from hybridattn.hf.accelerate import accelerate_transformers
    from hybridattn.select import score_layers

# Public name -> module that defines it.
_LAZY_NAMES = {
    "TokenData": "hybridattn.data",
    "accelerate_transformers": "hybridattn.hf.accelerate",
    "align": "hybridattn.distill",
    "calibrate": "hybridattn.calibration",
    "finetune": "hybridattn.distill",
    "match": "hybridattn.distill",
    "presets": "hybridattn.distill",
    "score_layers": "hybridattn.select",
}
_LAZY_MODULES = ("data", "distill", "evaluate", "info", "nn", "ops", "report", "run", "select")

__all__ = [
    "TokenData",
    "accelerate_transformers",
    "align",
    "calibrate",
    "convert",
    "data",
    "distill",
    "evaluate",
    "finetune",
    "get_cmake_dir",
    "get_include",
    "keep_softmax",
    "match",
    "nn",
    "ops",
    "presets",
    "report",
    "score_layers",
    "select",
    "sliding_window",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f"hybridattn.{name}")
    if name in _LAZY_NAMES:
        value = getattr(import_module(_LAZY_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'hybridattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_NAMES, *_LAZY_MODULES})

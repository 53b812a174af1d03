"""Image de-raining networks found by architecture search: MANAS (IEEE TCSVT 2023) in JAX.

`Derainer.from_pretrained` restores pictures; `list_pretrained` names the weights that ship with
the package; `register_candidate` adds an attention candidate of one's own to the search space.
"""

import importlib
import os
from typing import Any

# TensorFlow serves the input pipeline and the event files. Without oneDNN its results do not
# depend on the processor's kind, and it starts without irrelevant log messages.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

__version__ = "0.1.0"
__all__ = ["Derainer", "__version__", "list_pretrained", "register_candidate"]

_LAZY = {
    "Derainer": "manas_jax.inference.derainer",
    "list_pretrained": "manas_jax.inference.pretrained",
    "register_candidate": "manas_jax.registry",
}


def __getattr__(name: str) -> Any:
    # Imported on first use (PEP 562), so that `import manas_jax` alone loads no JAX.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

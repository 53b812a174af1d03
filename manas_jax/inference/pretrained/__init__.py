"""The weights that ship with the package, and how they were trained."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re

from manas_jax.buckets import Path, as_path
from manas_jax.errors import UserError, reading
from manas_jax.inference import hub

FOLDER = pathlib.Path(__file__).parent


def list_pretrained() -> list[str]:
    """Names of the weights that ship with the package, for `Derainer.from_pretrained`."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def find(name: str | os.PathLike) -> Path:
    """The file of the weights called `name`.

    Args:
      name: one of `list_pretrained()`, a file, a folder that `hub.save` wrote, either of them in a
        bucket, `gs://BUCKET/NAME`, or an address of the Hugging Face Hub, `hf://OWNER/NAME`.

    Raises:
      UserError: there is no such file, the path has another scheme, or the Hub refuses.
    """
    if str(name).startswith(hub.SCHEME):
        return hub.download(str(name))
    known = list_pretrained()
    file = FOLDER / f"{name}.safetensors" if str(name) in known else as_path(name)
    with reading(name, "weights file"):
        if file.is_dir():
            file /= hub.WEIGHTS
            if not file.exists():
                raise UserError(f"weights {name}: this folder holds no {hub.WEIGHTS}")
        if not file.exists():
            raise UserError(f"weights {name}: neither a file nor one of {', '.join(known)}")
    return file


def describe(name: str) -> str:
    """One line on weights of `list_pretrained`: parameters, scores, training data, provenance."""
    import safetensors

    with safetensors.safe_open(find(name), framework="np") as file:
        names = file.keys()
        shapes = [file.get_slice(k).get_shape() for k in names if k.startswith("params/")]
        provenance = json.loads(file.metadata()["provenance"])

    def flag(key: str) -> str:
        found = re.search(rf"--{re.escape(key)}=(\S+)", provenance["command"])
        return found[1] if found else "unknown"

    scores = f"{provenance['scores']}, " if "scores" in provenance else ""
    return (
        f"{name}: {sum(map(math.prod, shapes)):,} parameters, {scores}trained on "
        f"{pathlib.Path(flag('config.data.root')).name} with {flag('config')}, "
        f"step {provenance['step']}, commit {provenance['commit'][:7]}, {provenance['date'][:10]}"
    )

"""Weights on the Hugging Face Hub, and in folders with the layout of its repositories.

A repository holds the weights as `model.safetensors`, their genotype as `config.json`, and a model
card, `README.md`. Needs the extra `hub`; the layout itself does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from manas_jax import cost
from manas_jax.errors import UserError, check_extra, one_line
from manas_jax.files import output_file
from manas_jax.space import Genotype

if TYPE_CHECKING:
    from manas_jax.workdir.weights import Variables

SCHEME = "hf://"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_COST_AT = (321, 481)  # rows and columns of a picture of Rain100L


def download(address: str) -> pathlib.Path:
    """Downloads weights into the cache of `huggingface_hub`, unless it has them.

    Args:
      address: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION`.

    Returns:
      The file in the cache.

    Raises:
      UserError: another address, the extra is missing, or there are no such weights.
    """
    if not (match := _ADDRESS.fullmatch(address)):
        raise UserError(f"weights {address}: give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else it reports each retry
    with _hub(address):
        from huggingface_hub import hf_hub_download

        return pathlib.Path(
            hf_hub_download(match["repository"], WEIGHTS, revision=match["revision"])
        )


def save(
    folder: str | os.PathLike,
    variables: Variables,
    genotype: Genotype,
    provenance: Mapping[str, str],
    address: str | None = None,
) -> None:
    """Writes a folder with the files of a repository, and replaces those that are there.

    Args:
      folder: where to; created if it is missing.
      variables: 'params' and 'batch_stats' of the derived network.
      genotype: that of the network.
      provenance: origin of the weights, free text by name.
      address: what opens these weights, for the model card; the folder by default.

    Raises:
      UserError: a file cannot be written.
    """
    from manas_jax.workdir.weights import save_weights  # loads JAX, which names do not need

    folder = pathlib.Path(folder)
    with output_file(folder / WEIGHTS) as file:
        save_weights(file, variables, genotype, provenance)
    for name, text in (
        (CONFIG, genotype.to_json()),
        (CARD, model_card(genotype, provenance, address or str(folder))),
    ):
        with output_file(folder / name) as file:
            file.write_text(text, encoding="utf-8")


def push(
    repository: str,
    variables: Variables,
    genotype: Genotype,
    provenance: Mapping[str, str],
    private: bool,
) -> str:
    """Uploads the files of `save` in one commit; creates the repository if there is none.

    Args:
      repository: `OWNER/NAME`.
      variables: 'params' and 'batch_stats' of the derived network.
      genotype: that of the network.
      provenance: origin of the weights, free text by name.
      private: whether a new repository is private.

    Returns:
      The web address of the commit.

    Raises:
      UserError: the extra is missing, no token is stored or the token may not write there, or the
        Hub cannot be reached.
    """
    with _hub(repository), tempfile.TemporaryDirectory() as folder:
        from huggingface_hub import HfApi

        save(folder, variables, genotype, provenance, SCHEME + repository)
        hub = HfApi(library_name="manas_jax")
        hub.create_repo(repository, private=private, exist_ok=True)
        message = "Upload weights of manas_jax"
        commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        return commit.commit_url


def model_card(genotype: Genotype, provenance: Mapping[str, str], address: str) -> str:
    """A model card in Markdown: how to open `address`, network, cost, origin and scores."""
    network = cost.derived(genotype, *_COST_AT)
    rows, columns = _COST_AT
    space = json.dumps(genotype.space.to_dict())
    origin = "\n".join(f"- {name}: {text}" for name, text in provenance.items())
    modules = sorted(set(genotype.space.imports.values()))
    imports = "".join(f"import {module}  # registers candidates\n" for module in modules)
    options = "".join(f" --import {module}" for module in modules)
    return f"""---
library_name: manas_jax
pipeline_tag: image-to-image
tags: [de-raining, image-restoration, neural-architecture-search, jax, flax]
---

# De-raining weights of manas_jax

Remove rain from pictures with the network of this repository (`pip install 'manas_jax[hub]'`):

```python
{imports}from manas_jax import Derainer

derain = Derainer.from_pretrained("{address}")
clean = derain(picture)
```

or from a terminal: `manas-derain rainy.jpg -o clean.jpg --weights {address}{options}`.

## Network

{network.parameters:,} parameters and {2 * network.macs / 1e9:.1f} GFLOP for a picture of
{columns}x{rows} pixels. Its architecture is in `{CONFIG}`; the search space is `{space}`.

## Origin

{origin}
"""


@contextlib.contextmanager
def _hub(name: str) -> Iterator[None]:
    """Makes one line of whatever the Hub answers about `name`."""
    check_extra("hub", "huggingface_hub", subject=f"{name}:")
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # of the network, of HTTP, of names and answers
        raise UserError(f"{name}: the Hugging Face Hub refuses ({one_line(error)})") from None

"""Weights files that ask for more than they hold, or hold what no reader expects."""

import json

import pytest
import safetensors.numpy

from manas_jax.errors import UserError
from manas_jax.workdir.weights import load_weights, read_safetensors


@pytest.fixture
def changed(weights, tmp_path):
    """A function that writes the file of `small` with other metadata and gives its path."""
    tensors, metadata = read_safetensors(weights)

    def write(**changes):
        file = tmp_path / "changed.safetensors"
        safetensors.numpy.save_file(tensors, file, metadata | changes)
        return file

    return write


def _genotype(weights, **space):
    fields = json.loads(read_safetensors(weights)[1]["genotype"])
    return json.dumps(fields | {"space": fields["space"] | space})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"stem_blocks": 10_000_000}, r"space\.stem_blocks = 10000000: give .* from 1 to 1000"),
        (
            {"stem_blocks": 1000},
            r"describes a network of [\d,]+ parameters, but holds",
        ),
        ({"channels": [60000, 60000]}, r"describes a network of [\d,]+ parameters"),
        ({"channels": [10**4000, 2]}, r"space\.channels"),
        ({"patch": 2**40}, r"space\.patch"),
    ],
)
def test_claims_are_bounded_by_the_content(weights, changed, space, message):
    file = changed(genotype=_genotype(weights, **space))
    with pytest.raises(UserError, match=rf"changed\.safetensors: {message}"):
        load_weights(file)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"a":' * 50_000, "", "null", "\x00", "NaN"]
)
@pytest.mark.parametrize("key", ["genotype", "provenance"])
def test_metadata_that_are_no_description(changed, key, text):
    with pytest.raises(UserError, match=r"changed\.safetensors: ") as error:
        load_weights(changed(**{key: text}))
    assert len(str(error.value)) < 500

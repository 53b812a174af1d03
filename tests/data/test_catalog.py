"""The catalog's entries."""

import pytest

from manas_jax.data import catalog, prepare


@pytest.mark.parametrize("name", catalog.DATASETS)
def test_entries_are_complete_and_described(name):
    entry = catalog.DATASETS[name]
    assert all((entry.title, entry.backgrounds, entry.citation, entry.sources))
    assert entry.url.startswith("http")
    text = prepare.describe(name)
    for split, each in entry.splits.items():
        assert split in text and each.layouts
        assert all(f"{pairs:,}" in text for pairs in each.pairs)
    assert all(trap in text for trap in entry.traps)

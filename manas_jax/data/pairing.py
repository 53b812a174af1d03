"""Which rainy or restored files belong to which clean ones, by their names.

One rule for training folders and for scoring. A name is a key that pairs share, with an optional
role word before or after it (`norain-1`, `7_rain`, see `catalog`) and an optional version number at
its end (`7_2`, `7-2`, `7x2`, `7_rain_2`). A rainy or restored file belongs to the clean one of its
key; failing that, to the one of its key without the version.
"""

import collections
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from manas_jax.data import catalog
from manas_jax.errors import UserError
from manas_jax.files import first_few, natural_order

_ROLES = {
    word: role
    for role, words in (
        ("clean", catalog.CLEAN_WORDS),
        ("rainy", catalog.RAINY_WORDS),
        ("restored", catalog.RESTORED_WORDS),
    )
    for word in words
}
_WORD = "|".join(_ROLES)
_NAME = re.compile(
    rf"((?P<before>{_WORD})[-_])?(?P<key>.+?)([-_](?P<after>{_WORD})([-_]?(?P<version>\d+))?)?",
    re.IGNORECASE,
)


def role_and_key(stem: str) -> tuple[str, str]:
    """Splits the stem of a file name.

    Returns:
      The role ('clean', 'rainy', 'restored' or '') and the key, which ends in the version:
      `norain-1` is ('clean', '1'), `7_rain_2` is ('rainy', '7_2'), `street` is ('', 'street').
    """
    match = _NAME.fullmatch(stem)
    word = match["before"] or match["after"]
    if not word:
        return "", stem
    return _ROLES[word.lower()], match["key"] + (f"_{match['version']}" if match["version"] else "")


def clean_keys(key: str) -> tuple[str, str]:
    """Keys of the clean file that a rainy or restored one may belong to, in order of preference."""
    return key, re.sub(r"[-_x]\d+$", "", key)


def by_unique_key(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Maps keys to files, given as (key, file).

    Raises:
      UserError: two files have one key.
    """
    found = {}
    for key, file in files:
        if key in found:
            raise UserError(f"{found[key]} and {file} have one name; keep one of them")
        found[key] = file
    return found


def group_versions(
    clean: Mapping[str, str], rainy: Iterable[tuple[Sequence[str], str]]
) -> dict[str, list[str]]:
    """Groups rainy files by their clean one.

    Args:
      clean: the clean files by key.
      rainy: (keys that its clean file may have, file).

    Returns:
      The rainy files of each clean one, by its key.

    Raises:
      UserError: names the files without a counterpart, or one that may belong to two clean ones.
    """
    versions = {key: [] for key in clean}
    orphans, rainy = [], list(rainy)
    for keys, file in rainy:
        versions.get(next(filter(clean.__contains__, keys), None), orphans).append(file)
    childless = [clean[key] for key, files in versions.items() if not files]
    for files, lack in (orphans, "rainy without its clean"), (childless, "clean without a rainy"):
        if files:
            raise UserError(f"{first_few(files)}: {lack} image; add it or remove these")
    _check_one_reading(clean, {keys[0]: file for keys, file in rainy if len(keys) > 1})
    return versions


def _check_one_reading(clean: Mapping[str, str | Path], rainy: Mapping[str, str | Path]) -> None:
    """Checks that no number can be both the end of a clean file's name and that of a version.

    Of the clean files `a` and `a_1` and the rainy ones `a_1`, `a_2` and `a_1_1`, the first may be
    version 1 of `a`, as `a_2` is version 2.

    Args:
      clean: files by key.
      rainy: files by key, each of which has a clean one.

    Raises:
      UserError: `clean_keys` finds a file for each clean one in another order of preference too.
    """

    def other(key: str) -> str:
        """The clean key if it is that of a version wherever possible."""
        unversioned = clean_keys(key)[1]
        if unversioned == key or unversioned not in clean:
            return key
        # Where a file has the whole name of the clean one, others are numbered after it.
        is_taken = unversioned in rainy and other(unversioned) == unversioned
        return key if is_taken else unversioned

    moved = [key for key in rainy if key in clean and other(key) != key]
    if moved and clean.keys() <= {other(key) for key in rainy}:
        file, wanted, base = rainy[moved[0]], clean[moved[0]], clean[other(moved[0])]
        raise UserError(
            f"{file}: of {wanted}, or a version of {base}? rename one of these clean images, and "
            "its rainy ones alike"
        )


def pair(restored: Sequence[Path], clean: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs restored files with clean ones of the same stem, else by the rule of this module.

    Returns:
      (restored, clean) in natural order of the restored files.

    Raises:
      UserError: names the files without a counterpart, or one that may belong to several.
    """
    by_stem = _index(clean, lambda stem: stem)
    by_key = _index(clean, lambda stem: role_and_key(stem)[1])

    pairs, orphans = [], []
    for path in sorted(restored, key=natural_order):
        key, unversioned = clean_keys(role_and_key(path.stem)[1])
        found = by_stem[path.stem] or by_key[key] or by_key[unversioned]
        if len(found) > 1:
            raise UserError(f"{path} fits several clean images: {first_few(found)}; rename them")
        if found:
            pairs.append((path, found[0]))
        else:
            orphans.append(path)
    if orphans:
        raise UserError(f"no clean image for {first_few(orphans)}; add it or remove these")
    if unused := sorted(set(clean) - {c for _, c in pairs}, key=natural_order):
        raise UserError(
            f"no restored image for {first_few(unused)}; "
            "restore these too, or score against a folder without them"
        )
    _check_one_reading(
        {role_and_key(path.stem)[1]: path for path in clean},
        {role_and_key(path.stem)[1]: path for path in restored},
    )
    return pairs


def _index(paths: Iterable[Path], key: Callable[[str], str]) -> dict[str, list[Path]]:
    index = collections.defaultdict(list)
    for path in sorted(paths, key=natural_order):
        index[key(path.stem)].append(path)
    return index

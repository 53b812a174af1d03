"""Two alternatives take turns in processes of their own, here in checkouts without the project."""

import json
import subprocess

import numpy as np
import pytest

from benchmarks import ab

CASES = """
import os, pathlib, time, types

HERE = pathlib.Path(__file__).parent.parent
print("the case's own output")

def log(*words):
    with open(HERE.parent / "log", "a") as file:
        print(HERE.name, *words, file=file)

def make(name, folder):
    assert (folder / "prepared").read_text() == HERE.name
    if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        log("cache", os.path.isdir(cache) and len(os.listdir(cache)))
        pathlib.Path(cache).mkdir(exist_ok=True)
        (pathlib.Path(cache) / "program").touch()
    def run():
        log(name)
        time.sleep({"losses": SECONDS, "evaluation_small": 0.1}[name])
    return types.SimpleNamespace(run=run)

def case(name):
    def prepare(folder):
        (folder / "prepared").write_text(HERE.name)
    return types.SimpleNamespace(make=lambda folder: make(name, folder), prepare=prepare)

CASES = {name: case(name) for name in ("losses", "evaluation_small")}
"""


@pytest.fixture
def checkouts(tmp_path, monkeypatch):
    """'old' and 'new' with a fast and a slow case, and a `jax` that starts at once; the latter is
    this checkout."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name, seconds in {"old": 0.0, "new": 0.05}.items():
        folder = tmp_path / name / "benchmarks"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "cases.py").write_text(CASES.replace("SECONDS", str(seconds)))
        (tmp_path / name / "jax.py").write_text("block_until_ready = lambda x: x")
    monkeypatch.setattr(ab, "ROOT", tmp_path / "new")
    monkeypatch.setattr(ab, "commit", lambda checkout: checkout.name)
    return tmp_path


def _run(folder, *arguments):
    """The results in the file, and the log of the processes since the last call."""
    out, log = folder / "out" / "ab.json", folder / "log"
    log.unlink(missing_ok=True)
    assert ab.main([*map(str, arguments), f"--out={out}"]) == 0
    return json.loads(out.read_text()), log.read_text().splitlines()


def test_checkouts_take_turns(checkouts, capsys):
    old = checkouts / "old"
    (entry,), log = _run(checkouts, "losses", "--checkout", old, "--rounds", 3)
    assert log[:4] == ["old losses"] * 2 + ["new losses"] * 2  # not timed
    assert log[4:] == [f"{name} losses" for name in ("new", "old", "old", "new", "new", "old")]
    assert entry["commits"] == {"base": "old", "case": "new"}
    base, case = (np.array(entry["seconds"][name]) for name in ("base", "case"))
    assert len(base) == 3 and min(case) >= 0.05
    assert entry["ratio"]["median"] == np.median(case / base)
    assert "| losses | step  | old " in capsys.readouterr().out


def test_cases_take_turns_and_results_are_replaced(checkouts):
    arguments = ["l*", "--base", "evaluation_small", "--rounds"]
    (first,), _ = _run(checkouts, *arguments, 1)
    record, log = _run(checkouts, "losses", "--checkout", checkouts / "old", "--rounds", 1)
    record, log = _run(checkouts, *arguments, 2)
    assert [(x["case"], x["base"]) for x in record] == [
        ("losses", "losses"),
        ("losses", "evaluation_small"),
    ]
    assert len(first["seconds"]["case"]) == 1 and len(record[1]["seconds"]["case"]) == 2
    base, case = (np.array(record[1]["seconds"][name]) for name in ("base", "case"))
    assert record[1]["ratio"]["max"] == max(case / base)
    assert set(log) == {"new losses", "new evaluation_small"}


@pytest.mark.parametrize(("warm", "programs"), [(False, 0), (True, 1)])
def test_first_steps_find_an_empty_or_a_full_cache(warm, programs, checkouts):
    arguments = ["losses", "--checkout", checkouts / "old", "--first", "--rounds", 2]
    (entry,), log = _run(checkouts, *arguments, *["--warm"] * warm)
    assert entry["of"] == ("warm first step" if warm else "cold first step")
    found = [line.split()[-1] for line in log if "cache" in line]
    assert len(found) == 4 + 2 * warm  # the first process of each fills the cache
    assert found[2 * warm :] == [str(programs)] * 4
    assert log.count("new losses") == 2 + warm  # a step per process
    assert min(entry["seconds"]["case"]) > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["losses", "--checkout={out}"], "not a checkout of this project"),
        (["nothing", "--checkout={old}"], "matches no case"),
        (["train_small", "--checkout={old}"], "does not run: KeyError: 'train_small'"),
        (["losses", "--base=train_*"], "matches several cases"),
        (["losses", "--base=losses"], "give other cases"),
        (["losses", "--checkout={old}", "--rounds=0"], "--rounds=0"),
        (["losses", "--checkout={old}", "--out={old}/jax.py"], "cannot be read"),
        (["losses", "--checkout={old}", "--out={old}/other.json"], "not written by benchmarks.ab"),
    ],
)
def test_errors_are_one_line(arguments, message, checkouts, capsys):
    (checkouts / "old" / "other.json").write_text('{"cases": {}}')
    places = {name: checkouts / name for name in ("old", "out")}
    arguments = [x.format(**places) for x in arguments]
    assert ab.main([f"--out={checkouts / 'ab.json'}", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_commits_are_those_of_git(tmp_path):
    assert ab.commit(tmp_path) == ""
    (tmp_path / "manas_jax").mkdir()
    file = tmp_path / "manas_jax" / "x.py"
    file.write_text("1")
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    assert len(ab.commit(tmp_path)) == 40
    file.write_text("2")
    assert ab.commit(tmp_path).endswith("+changes")

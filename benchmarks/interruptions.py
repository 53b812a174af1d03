"""A run that is killed again and again ends with the bits of one that nothing interrupted.

python -m benchmarks.interruptions [--kills 50] [--terms 10] [--out results/interruptions.json]

First a short run (configs/tiny.py, more steps, a checkpoint every two) goes through undisturbed.
Then the same run is killed (SIGKILL) at random moments, from the start of the process on, and
started again with the same command, until there were as many kills as wanted; a run that reaches
its end is compared and another one begun. The same with SIGTERM, after which the process has to
save, to end with status 75 and to go on at the very next step. Every interruption is a row: how
long the process had run, the newest checkpoints before and after, the step that it went on from,
whether a checkpoint was half-written. On CPU.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.agreement import NARROW
from manas_jax.files import write_json
from manas_jax.runtime import signals
from manas_jax.workdir import provenance

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 60  # of the search and of the training
LIMIT = 600  # seconds that a process may take


def _command(workdir: pathlib.Path) -> list[str]:
    settings = {
        "search.steps": STEPS,
        "train.steps": STEPS,
        "search.checkpoint_every": 2,
        "train.checkpoint_every": 2,
        "train.ema": 0.9,
        "log_every": 10,
        "evaluate.pictures": 0,
        "data.validation_scenes": 1,
        **NARROW,
    }
    return [
        *(sys.executable, "-m", "manas_jax.main", "--config=configs/tiny.py"),
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def _start(workdir: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    with open(log, "w") as stream:
        return subprocess.Popen(_command(workdir), cwd=ROOT, stderr=stream, stdout=stream)


def _saved(workdir: pathlib.Path) -> dict[str, list[int]]:
    """Steps of the finished checkpoints of each stage."""
    made = {}
    for stage in ("search", "train"):
        folder = workdir / stage / "checkpoints"
        names = [f.name for f in folder.iterdir()] if folder.exists() else []
        made[stage] = sorted(int(name) for name in names if name.isdigit())
    return made


def _saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any(workdir.glob("*/checkpoints/*.orbax-checkpoint-tmp"))


def _wait_for_steps(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Until a process has saved something that was not there when it began, or has ended."""
    before, begin = _saved(workdir), time.monotonic()
    while process.poll() is None and _saved(workdir) == before:
        if time.monotonic() - begin > LIMIT:
            raise TimeoutError(f"no checkpoint in {LIMIT} s")
        time.sleep(0.02)


def _final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The last checkpoints' arrays by name, read without our own code."""
    import jax
    import orbax.checkpoint as ocp

    made = {}
    for stage in ("search", "train"):
        folder = workdir / stage / "checkpoints" / str(STEPS) / "state"
        tree = ocp.StandardCheckpointer().restore(folder.absolute())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            made[stage + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return made


def _same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def _went_on_from(said: str) -> dict[str, int]:
    """The step of each stage that a process said it goes on from."""
    found = re.findall(r"(search|train): goes on from step (\d+)", said)
    return {stage: int(step) for stage, step in found}


def interrupt(
    number: int, count: int, folder: pathlib.Path, expected: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    """Interrupts runs `count` times by a signal.

    Args:
      number: SIGKILL or SIGTERM.
      count: how often.
      folder: for the workdirs; has to be empty.
      expected: the arrays at the end of an undisturbed run.
      seed: of the moments.

    Returns:
      'interruptions', a row each, and 'runs', of each finished run whether it ended with the same
      bits.
    """
    draw = random.Random(seed)
    name = signal.Signals(number).name
    workdir, rows, runs = folder / "0", [], []
    while True:
        log, before, begin = folder / "log.txt", _saved(workdir), time.monotonic()
        process = _start(workdir, log)
        if len(rows) < count:
            # Most of them among the steps, some while the process starts and compiles.
            if number == signal.SIGTERM or draw.random() < 0.8:
                _wait_for_steps(process, workdir)
                time.sleep(draw.uniform(0, 2))
            else:
                time.sleep(draw.uniform(0, 10))
            process.send_signal(number)
        status, said = process.wait(LIMIT), log.read_text()
        if status == 0:
            same = _same_bits(_final_arrays(workdir), expected)
            runs.append({"interruptions": len(rows), "same_bits": same})
            print(f"{name}: run {len(runs)} finished, same bits: {same}", flush=True)
            if len(rows) == count:
                return {"interruptions": rows, "runs": runs}
            shutil.rmtree(workdir)
            workdir = folder / str(len(runs))
            continue
        if len(rows) == count or status not in (-number, signals.PREEMPTED):
            raise RuntimeError(f"status {status}: {said[-2000:]}")
        saved, stopped = _saved(workdir), re.findall(r"stopped at step (\d+) and saved", said)
        row = {
            "run": len(runs),
            "seconds": round(time.monotonic() - begin, 2),
            "status": status,
            "newest_before": {stage: max(steps, default=0) for stage, steps in before.items()},
            "went_on_from": _went_on_from(said),
            "newest": {stage: max(steps, default=0) for stage, steps in saved.items()},
            "half_written": _saving(workdir),
            "stopped_at": int(stopped[0]) if stopped else None,
        }
        for stage, step in row["went_on_from"].items():
            if step != row["newest_before"][stage]:
                raise RuntimeError(f"went on from another step than the newest: {row}")
        if stopped and row["stopped_at"] not in row["newest"].values():
            raise RuntimeError(f"the step that it stopped at is not saved: {row}")
        rows.append(row)
        print(f"{name} {len(rows)} of {count}: {row}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status, 1 if bits differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interruptions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "interruptions.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Programs are compiled once: most moments should fall into steps and saving.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        begin = time.monotonic()
        if _start(folder / "undisturbed", folder / "log.txt").wait(LIMIT):
            raise RuntimeError((folder / "log.txt").read_text()[-2000:])
        print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
        expected = _final_arrays(folder / "undisturbed")
        record: dict[str, Any] = {
            "provenance": provenance.describe(), "steps": STEPS, "seed": options.seed
        }  # fmt: skip
        for number, count in ((signal.SIGTERM, options.terms), (signal.SIGKILL, options.kills)):
            (folder / str(int(number))).mkdir()
            made = interrupt(number, count, folder / str(int(number)), expected, options.seed)
            record[signal.Signals(number).name] = made
            write_json(options.out, record)
    runs = [run for key in ("SIGTERM", "SIGKILL") for run in record[key]["runs"]]
    return int(not all(run["same_bits"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())

"""Interrupts runs at random moments and compares their results, bit for bit, with a whole run.

python -m benchmarks.interruptions [--kills 50] [--terms 10]
    [--out results/robustness/interruptions.json]

First a short run (configs/tiny.py, more steps, a checkpoint every two steps) completes without
interruption. Then the same run is killed (SIGKILL) at random moments, from the start of the process
on, and resumed with the same command, --kills times in all; a run that reaches its end is compared
with the first one, and another is started. The same with SIGTERM, after which the process has to
save, to exit with status 75 and to resume at the next step. The record of an interruption holds the
age of the process, the newest checkpoints before and after, the step that the process resumed from,
and whether a checkpoint was half-written. On CPU.
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

from benchmarks import RESULTS, ROOT
from benchmarks.agreement import NARROW
from manas_jax.files import write_json
from manas_jax.runtime import signals
from manas_jax.workdir import provenance

STEPS = 60  # of the search and of the training
LIMIT = 600  # seconds per process


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
    steps = {}
    for stage in ("search", "train"):
        folder = workdir / stage / "checkpoints"
        names = [f.name for f in folder.iterdir()] if folder.exists() else []
        steps[stage] = sorted(int(name) for name in names if name.isdigit())
    return steps


def _saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any(workdir.glob("*/checkpoints/*.orbax-checkpoint-tmp"))


def _wait_for_steps(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Waits until the process has saved a checkpoint or has ended."""
    before, begin = _saved(workdir), time.monotonic()
    while process.poll() is None and _saved(workdir) == before:
        if time.monotonic() - begin > LIMIT:
            raise TimeoutError(f"no checkpoint in {LIMIT} s")
        time.sleep(0.02)


def _final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Arrays of the last checkpoints by name, read by Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    arrays = {}
    for stage in ("search", "train"):
        folder = workdir / stage / "checkpoints" / str(STEPS) / "state"
        tree = ocp.StandardCheckpointer().restore(folder.absolute())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[stage + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def _same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def _resumed_from(said: str) -> dict[str, int]:
    """The step that each stage resumed from, according to the log."""
    found = re.findall(r"(search|train): resumes at step (\d+)", said)
    return {stage: int(step) for stage, step in found}


def interrupt(
    number: int, count: int, folder: pathlib.Path, expected: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    """Interrupts runs `count` times with a signal.

    Args:
      number: SIGKILL or SIGTERM.
      count: number of interruptions.
      folder: for the workdirs; has to be empty.
      expected: final arrays of the run without interruption.
      seed: of the random moments.

    Returns:
      'interruptions', a list of records, and 'runs': for each finished run whether its final
      arrays equal the expected ones.

    Raises:
      RuntimeError: a run fails, loses a saved step or does not resume from its newest checkpoint.
    """
    draw = random.Random(seed)
    name = signal.Signals(number).name
    workdir, rows, runs = folder / "0", [], []
    while True:
        log, before, begin = folder / "log.txt", _saved(workdir), time.monotonic()
        process = _start(workdir, log)
        if len(rows) < count:
            # Most during the steps, some while the process starts and compiles.
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
            "went_on_from": _resumed_from(said),
            "newest": {stage: max(steps, default=0) for stage, steps in saved.items()},
            "half_written": _saving(workdir),
            "stopped_at": int(stopped[0]) if stopped else None,
        }
        for stage, step in row["went_on_from"].items():
            if step != row["newest_before"][stage]:
                raise RuntimeError(f"did not resume from the newest step: {row}")
        if stopped and row["stopped_at"] not in row["newest"].values():
            raise RuntimeError(f"the last step is not saved: {row}")
        rows.append(row)
        print(f"{name} {len(rows)} of {count}: {row}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, 1 if bits differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interruptions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--out", type=pathlib.Path, default=RESULTS / "robustness" / "interruptions.json"
    )
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        # Programs are compiled once, so that most interruptions hit steps and saves.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        begin = time.monotonic()
        if _start(folder / "whole", folder / "log.txt").wait(LIMIT):
            raise RuntimeError((folder / "log.txt").read_text()[-2000:])
        print(f"run without interruption: {time.monotonic() - begin:.0f} s", flush=True)
        expected = _final_arrays(folder / "whole")
        record: dict[str, Any] = {
            "provenance": provenance.describe(), "steps": STEPS, "seed": options.seed
        }  # fmt: skip
        for number, count in ((signal.SIGTERM, options.terms), (signal.SIGKILL, options.kills)):
            (folder / str(int(number))).mkdir()
            record[signal.Signals(number).name] = interrupt(
                number, count, folder / str(int(number)), expected, options.seed
            )
            write_json(options.out, record)
    runs = [run for key in ("SIGTERM", "SIGKILL") for run in record[key]["runs"]]
    return int(not all(run["same_bits"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())

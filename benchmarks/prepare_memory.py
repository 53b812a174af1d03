"""Peak memory of preparing and reading a benchmark of many files.

    python benchmarks/prepare_memory.py

writes `results/prepare_memory.json`. It makes pairs of noise in the layout of Rain100L in a
temporary folder, prepares them (`manas_jax.data.prepare`) and reads all of them back, each in a
process of its own whose peak resident set size is taken, for two numbers of files: what grows with
the number is not bounded. TFDS sorts up to 1000 MiB of examples in memory, beyond that on disk; to
see that without gigabytes of files, preparing is also measured with that limit at 8 MiB.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
_SMALL_BUFFER = 8  # MiB

# What each process does. It ends by printing its peak resident set size in KiB.
_PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
_STAGES = {
    "import": "import manas_jax.data.tfds_builder",
    "prepare": """
from manas_jax.data import prepare
assert prepare.main(["rain100l", "--root", files, "--data_dir", data, "--partial"]) == 0
""",
    "prepare, small buffer": f"""
from tensorflow_datasets.core import shuffle
shuffle.MAX_MEM_BUFFER_SIZE = {_SMALL_BUFFER} * 2**20
from manas_jax.data import prepare
assert prepare.main(["rain100l", "--root", files, "--data_dir", small, "--partial"]) == 0
""",
    "read": """
from manas_jax.data import tfds_reader
from manas_jax.data.scene import read
found = tfds_reader.load("derain/rain100l", data)
pictures = [p for part in found for s in part for p in (s.clean, *s.rainy)]
assert len(pictures) == count
assert all(read(p).shape == (side, side, 3) for p in pictures)
""",
}


def measure(count: int, side: int) -> dict[str, dict[str, float]]:
    """Seconds and peak MiB of each stage for `count` files of `side` x `side` pixels."""
    with tempfile.TemporaryDirectory() as folder:
        places = {name: os.path.join(folder, name) for name in ("files", "data", "small")}
        size = _make(pathlib.Path(places["files"]), count, side)
        setting = "".join(
            f"{name} = {value!r}\n"
            for name, value in {**places, "count": count, "side": side}.items()
        )
        stages = {}
        for stage, code in _STAGES.items():
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", "\n".join((setting, code, _PEAK))],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            stages[stage] = {
                "seconds": round(time.perf_counter() - start, 1),
                "peak_mib": round(int(done.stdout.split()[-1]) / 1024, 1),
            }
    return {"files_mib": round(size / 2**20, 1), "stages": stages}


def _make(root: pathlib.Path, count: int, side: int) -> int:
    """Writes `count` files, one pair in ten for testing; returns their bytes."""
    noise, size = np.random.default_rng(0), 0
    for split in ("train", "test"):
        for kind in ("norain", "rain"):
            (root / split / kind).mkdir(parents=True)
    for i in range(count // 2):
        split = "test" if i % 10 == 9 else "train"
        clean = noise.integers(0, 200, (side, side, 3), np.uint8)
        for kind, pixels in {"norain": clean, "rain": clean + np.uint8(55)}.items():
            path = root / split / kind / f"{i}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
            size += path.stat().st_size
    return size


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--out", default=str(ROOT / "results" / "prepare_memory.json"))
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    record = {
        "command": " ".join(("python benchmarks/prepare_memory.py", *sys.argv[1:])),
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, Python "
        f"{platform.python_version()}",
        "side": args.side,
        "small_buffer_mib": _SMALL_BUFFER,
        "by_number_of_files": {count: measure(count, args.side) for count in args.files},
    }
    text = json.dumps(record, indent=2) + "\n"
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.tmp")
    unfinished.write_text(text)
    os.replace(unfinished, out)
    print(text, end="")


if __name__ == "__main__":
    main()

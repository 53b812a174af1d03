"""What de-raining one large picture takes, and whether its tiles show.

python -m benchmarks.derain_large WEIGHTS

makes a drawn picture of 24 megapixels, de-rains it with the command in a process of its own, whose
time and peak resident set size it takes, and compares tiles with the whole on a part that fits
into memory untiled. Writes `results/derain_large.json`.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks.pictures import landscape
from manas_jax.data import images
from manas_jax.data.lazy_tf import tf
from manas_jax.data.rain import synthesize
from manas_jax.files import write_json
from manas_jax.inference.derainer import Derainer
from manas_jax.workdir import provenance

RESULT = pathlib.Path(__file__).parent.parent / "results" / "derain_large.json"
HEIGHT, WIDTH = 4000, 6000
PART = 1536  # pixels of the side of what is also de-rained whole


def rainy(height: int, width: int) -> np.ndarray:
    """The drawn landscape enlarged, in heavy rain: uint8 (height, width, 3)."""
    clean = np.asarray(Image.fromarray(landscape()).resize((width, height), Image.BICUBIC))
    parts = np.empty_like(clean)
    side = 500  # rain is drawn patch by patch
    for top in range(0, height, side):
        for left in range(0, width, side):
            patch = tf.constant(clean[top : top + side, left : left + side], tf.float32) / 255
            wet = synthesize(patch, tf.constant([top, left], tf.int64), "heavy", 0.0).numpy()
            parts[top : top + side, left : left + side] = np.clip(wet * 255 + 0.5, 0, 255)
    return parts


def measure(weights: str) -> dict:
    """Seconds and MiB of the command on a large picture; differences of tiles in grey levels."""
    picture = rainy(HEIGHT, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("in.png", "out.png"))
        images.write_png(source, picture)
        start = time.monotonic()
        command = [sys.executable, "-m", "manas_jax.derain", source, "-o", target]
        subprocess.run([*command, "--weights", weights, "--quiet"], check=True)
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        restored = images.read(target)
    part = picture[:PART, :PART]
    whole = Derainer.from_pretrained(weights, tile=PART)(part)
    difference = {}
    for tile in (512, 768, 1024):
        tiled = Derainer.from_pretrained(weights, tile=tile)(part)
        difference[tile] = int(np.abs(whole.astype(int) - tiled).max())
    return {
        "pixels": [HEIGHT, WIDTH],
        "seconds": seconds,
        "peak_mib": peak / 1024,
        "changed_by": float(np.abs(restored.astype(int) - picture).mean()),
        "compared_pixels": [PART, PART],
        "largest_difference_of_tiles": difference,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="name of pretrained weights, or a file")
    options = parser.parse_args()
    record = measure(options.weights)
    print(record)
    write_json(RESULT, {"provenance": provenance.describe(), **record})

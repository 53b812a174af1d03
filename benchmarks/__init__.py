"""Commands that measure, and the tables made of their results; see README.md in this folder."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "results"
THIS_MACHINE = RESULTS / "speed" / "this"  # git ignores it

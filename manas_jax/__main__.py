"""`python -m manas_jax` lists the commands; `--version` prints the version."""

import argparse

from manas_jax import __version__

COMMANDS = {
    "derain": "remove the rain from pictures and videos (also `manas-derain`)",
    "main": "search, train, evaluate and report",
    "preflight": "compile a run's steps for a slice of TPUs, on any machine",
    "latency": "measure what each choice of a search space takes on this device",
    "evaluate": "score restored pictures of any method",
    "report": "write the report of a run again",
    "study": "compare searches with random networks",
    "downstream": "detection and segmentation on rainy, restored and clean pictures",
    "data.prepare": "check a published dataset and write it for TensorFlow Datasets",
    "inference.export": "export a network to ONNX, StableHLO or SavedModel",
    "inference.import_torch": "import a checkpoint of the released PyTorch code",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Commands, each with its own --help:\n\n"
        + "\n".join(f"  python -m manas_jax.{name:<24}{what}" for name, what in COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=f"manas_jax {__version__}")
    parser.parse_args()
    parser.print_help()

"""What a run leaves on disk: checkpoints, weights, provenance."""

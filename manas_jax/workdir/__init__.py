"""What a run writes to disk: its configuration, checkpoints, weights and provenance."""

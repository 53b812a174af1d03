"""What trained networks are used through: weights files, and the import of released checkpoints."""

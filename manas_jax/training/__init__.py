"""The final training, and what search and training share: losses, loop, state, validation."""

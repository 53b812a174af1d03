"""The ways to search an architecture, and the derivation of a genotype."""

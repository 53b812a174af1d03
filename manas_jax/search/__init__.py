"""Architecture search methods, and the derivation of a genotype."""

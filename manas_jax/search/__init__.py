"""The search: bilevel optimisation of architecture and weights, then derivation."""

"""The networks: layers, candidates, columns, attention modules, and the skeleton of them all."""

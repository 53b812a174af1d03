"""Whether de-raining helps what comes after it: detection and segmentation of the pictures."""

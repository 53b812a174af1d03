"""Whether de-raining helps what comes after it: detection of objects."""

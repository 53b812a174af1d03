"""Many small searches and trainings, to see whether the search is worth its cost."""

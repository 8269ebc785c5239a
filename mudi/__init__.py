"""What the scripts, the notebooks and the metric share; see README, "Where things are"."""

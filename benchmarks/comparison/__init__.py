"""Early exit against what else there is to make a classifier fast: the parts of `compare.py`."""

"""Captions of many images: a plan of the work, parts of it done here or by a cluster, one file of results."""

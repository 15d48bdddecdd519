"""Results on disk, read with care and without torch: a folder a sweep, a folder a run."""

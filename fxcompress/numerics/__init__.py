"""Numbers of few bits: grids, observers of ranges, and the modules that simulate them in training."""

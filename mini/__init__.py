"""Small models of the real classes, for tests and for `make demo`."""

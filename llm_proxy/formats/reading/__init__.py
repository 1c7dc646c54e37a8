"""Reads other programs' logs: one module per format, each from lines to the calls that they tell of."""

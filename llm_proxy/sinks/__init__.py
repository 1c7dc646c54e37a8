"""Writes records out, one module per format."""

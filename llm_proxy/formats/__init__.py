"""Reads and writes other formats: one module each, for export and import."""

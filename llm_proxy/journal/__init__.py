"""Keeps raw frames between the wire and the log files: ring, segments, reader."""

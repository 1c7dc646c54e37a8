"""Passes finished calls on to sinks beside the session logs, each in a lane of its own."""

"""Drives the record: journal to exchanges to sinks."""

"""Is typed: parses the command line, calls, prints."""

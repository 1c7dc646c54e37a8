"""Calls in flight: the journal read as it grows, what answers say told in pieces, and handed to whoever watches."""

"""Finds: an SQLite index of the session logs, a cache that can be built again from them."""

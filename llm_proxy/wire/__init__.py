"""Reads bytes: heads, framing, event streams, WebSocket frames, codings. Pure: no I/O, no clock."""

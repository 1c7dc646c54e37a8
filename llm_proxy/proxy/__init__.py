"""Carries: listener, router, relay, upstream pool. No JSON, no SQL, no templates."""

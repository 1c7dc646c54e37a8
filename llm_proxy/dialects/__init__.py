"""Understands API formats: what each provider's bytes mean. Pure."""

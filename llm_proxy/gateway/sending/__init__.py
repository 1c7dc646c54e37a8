"""Calls to providers, by way of the proxy: connections, each provider's paths and credentials, events of streams."""

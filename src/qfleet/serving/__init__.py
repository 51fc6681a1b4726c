"""Serving: a policy over HTTP, with micro-batches, hot reload and metrics. Imports no torch. Floor 7."""

"""Strategies side by side: the same budget and the same seeds for all, run in turn, with intervals over the seeds."""

"""Evaluation: how good a policy is, wherever it lives, and how fast its run got there. See the modules."""

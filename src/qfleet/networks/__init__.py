"""Torsos, heads and the flat parameter vector. Floor 2."""

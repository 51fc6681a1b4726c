"""qfleet: one Q-learner mapped onto any fleet. Algorithm, strategy and engine are three independent choices."""

from qfleet.version import __version__

__all__ = ["__version__"]

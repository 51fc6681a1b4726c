"""Replay: where transitions wait between the actor and the learner (Lin, 1992).

storage holds the rows, uniform and prioritized decide which are drawn, n_step builds them, segments saves them.
Import from the modules; this file stays empty of imports because prioritized brings numba with it.
"""

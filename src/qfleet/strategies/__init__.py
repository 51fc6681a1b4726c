"""One file per strategy: how the work is split. A strategy is a generator of events. Floor 5b."""

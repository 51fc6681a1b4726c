"""Plain single-threaded classes that do the work: no locks, sleeps, ray or torch.distributed here. Floor 4."""

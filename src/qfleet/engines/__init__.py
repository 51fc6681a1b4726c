"""One file per engine: where roles live and how calls reach them. Knows nothing of learning. Floor 5a."""

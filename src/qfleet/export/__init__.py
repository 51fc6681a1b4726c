"""Export: the best policy of a run as a file that other runtimes read, once it has been shown to agree. Floor 7."""

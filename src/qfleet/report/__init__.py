"""Pages that stand alone: the frame and charts of every page, and the report of runs. See the modules."""

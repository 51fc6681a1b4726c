"""Planning: what a run would take on a cluster, strategy by strategy and size by size, before it is paid for."""

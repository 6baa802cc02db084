"""Search: from a traced step and a cluster to the layouts and strategies of a plan."""

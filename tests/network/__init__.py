"""Real processes: networks of node processes that are loaded, killed, frozen, stopped and audited."""

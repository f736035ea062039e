"""The message centre: a durable queue that takes everything at once and hands it out in order, at a bounded rate."""

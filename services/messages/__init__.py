"""The message centre: a durable queue that takes everything at once and hands it out in order, no faster than a rate."""

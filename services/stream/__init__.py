"""Payment streams: many payments between two parties, one upload to the chain."""

"""The product broken on purpose in named ways, and for each the command that notices; ``python -m tests.mutants``."""

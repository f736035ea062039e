"""Byte-level fuzzing of every border where a byte of someone else comes in; ``python -m tests.fuzz`` runs it."""

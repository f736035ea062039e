"""Tests of private channels."""

"""For all tests: hypothesis draws the same examples in every run, and a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("hansa", deadline=None, derandomize=True, database=None)
settings.load_profile("hansa")

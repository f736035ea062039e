"""Words that every surface uses which shows or mentions a trusted environment."""

EMULATED = "emulated, without hardware isolation"
"""What our trusted environments are: processes of their own, whose keys the root of their machine can read."""

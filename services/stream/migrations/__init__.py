"""The steps that make a service party's tables, and bring old ones up to date."""

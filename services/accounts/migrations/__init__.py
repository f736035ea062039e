"""The steps that make the account system's tables, and bring old ones up to date."""

"""The steps that make the event store's tables, oldest first; :mod:`services.local.schema` runs what is due."""

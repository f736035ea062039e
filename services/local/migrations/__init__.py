"""How every store's tables are brought up to date: alembic's environment, which all stores share."""

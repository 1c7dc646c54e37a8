"""Where the gateway's state lives: one SQLite file, or a PostgreSQL that any number of machines share."""

"""The database: connections and transactions, the schema and its migrations, and how statements are written."""

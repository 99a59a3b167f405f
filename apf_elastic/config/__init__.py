"""The configuration: schema, loading, plugins."""

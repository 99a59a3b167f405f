"""What glideins join."""

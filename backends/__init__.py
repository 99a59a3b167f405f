"""What supplies resources: one file per kind of backend."""

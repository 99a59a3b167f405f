"""What runs on a resource to join the pool."""

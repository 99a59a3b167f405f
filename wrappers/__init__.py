"""Pilot wrappers that backends submit for workload managers with pilots of their own."""

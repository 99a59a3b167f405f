"""The embedded work queue: sees the loop work without any server."""

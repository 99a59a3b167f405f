"""Where waiting work is counted."""

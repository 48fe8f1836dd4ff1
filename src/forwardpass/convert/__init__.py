"""Source in, verified variants out."""

"""A sentence encoder: all-MiniLM-L6-v2, 22 million parameters, whose weights come inside a package."""

"""The rivals' programs, as their documentation has them. Each runs in the environment of its own server."""

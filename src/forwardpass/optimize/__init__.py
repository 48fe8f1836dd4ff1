"""Candidates, their measured evidence, and the choice."""

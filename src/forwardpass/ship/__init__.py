"""Runs the checklist, resumable, and writes the report."""

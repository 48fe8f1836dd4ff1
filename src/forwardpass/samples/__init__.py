"""Reading representative inputs from files, folders and functions."""

"""Runs the program: roles, state files, shell variables, status."""

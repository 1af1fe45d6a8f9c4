"""Weights and pictures that ship with the module; see README.md beside this file."""

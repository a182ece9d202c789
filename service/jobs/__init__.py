"""Retraining: the offline job of the command line, run as a subprocess; its records survive the service."""

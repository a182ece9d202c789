"""The steps of the method, one idea a file."""

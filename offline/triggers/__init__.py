"""The trigger families of the inversion, one file each."""

"""Measurements of the whole: zoos of suspects, baselines, and the service beside other servers."""

"""The HTTP surface: thin layers over `service.core`, `service.registry` and `service.jobs`."""

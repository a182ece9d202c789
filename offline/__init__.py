"""The offline job: one module a step, no knowledge of HTTP."""

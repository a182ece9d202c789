"""Tests, a file per subject; `tests.toys` has the small models that they share."""

"""The generated parts of README.md and docs/: tables and pictures of the committed results."""

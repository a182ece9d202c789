"""What the commands run: each job calls the steps in order and writes what comes out."""

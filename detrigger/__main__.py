"""`python -m detrigger` is `detrigger`."""

import sys

# Python puts the current folder first. A user's torch.py or json.py there must not stand in for the real one.
if not sys.flags.safe_path:
    del sys.path[0]

from detrigger.cli import main

sys.exit(main())

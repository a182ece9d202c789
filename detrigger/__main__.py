"""`python -m detrigger` is `detrigger`."""

import sys

from detrigger.cli import main

sys.exit(main())

"""`python -m launch` is the `maskwright` command."""

import sys

from launch.cli import main

sys.exit(main())

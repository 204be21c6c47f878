"""The ``kanoclip`` command."""

import sys

from kanoclip.verbs.table import main

if __name__ == "__main__":
    sys.exit(main())

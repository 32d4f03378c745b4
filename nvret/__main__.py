"""``python -m nvret``, and so ``torchrun -m nvret``."""

import sys

from nvret.cli import main

sys.exit(main())

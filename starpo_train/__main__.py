"""`python -m starpo_train`, and so `torchrun -m starpo_train`: the same as `starpo-train`."""

import sys

from starpo_train.cli import main

sys.exit(main())

"""python -m manas_jax.report --workdir=DIR"""

import sys

from manas_jax.report.page import main

sys.exit(main())

"""python -m manas_jax.study --config=FILE --workdir=DIR"""

from absl import flags

from manas_jax import app
from manas_jax.study import run

__doc__ = run.__doc__  # for --help
flags.adopt_module_key_flags(app)
flags.adopt_module_key_flags(run)
app.start(run.main)

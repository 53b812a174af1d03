"""python -m manas_jax.study --config=FILE --workdir=DIR"""

from manas_jax import app
from manas_jax.study.run import main

app.start(main)

"""python -m manas_jax.study --config=FILE --workdir=DIR"""

from manas_jax.main import start
from manas_jax.study.run import main

start(main)

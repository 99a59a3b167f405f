#!/bin/sh
# Starts a worker of the embedded pool. The worker needs the standard library only, so neither site-packages nor
# what the user's environment says to Python can disturb it (-I -S).
exec "${ELASTIC_PYTHON:?}" -I -S -c '
import os, sys
sys.path.insert(0, os.environ["ELASTIC_PATH"])
from apf_elastic.embedded.worker import main
sys.exit(main())
'

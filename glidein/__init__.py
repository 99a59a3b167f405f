"""What runs on a resource to join the pool: `start.sh`, described in README.md beside it.

The exit codes are the script's words to the factory: all but DONE count against the backend, and BROKEN_NODE came
after the node was held back for a while.
"""

from pathlib import Path
from typing import Final

START_SCRIPT: Final = Path(__file__).resolve().with_name("start.sh")

DONE: Final = 0
BAD_SETTINGS: Final = 80
BROKEN_NODE: Final = 81
NOT_JOINED: Final = 82
CONDOR_FAILED: Final = 83
STOPPED: Final = 84

LEASE_NAME: Final = "apf-elastic-lease@{factory}"
"""Name of the generic ad that is a factory's lease; its ApfElasticLeaseSerial has to grow, also across restarts."""

"""`python -m r1async`: tied to its launcher before anything slow is imported."""

import logging
import os
import sys

from r1async.launch import lifeline

launched = lifeline.arm()

from r1async.cli import main  # noqa: E402  (after the lifeline: imports take a second that a parent may not live)

code = main(launched=launched)
if launched:
    # Tearing down an interpreter that holds torch and transformers takes seconds of a busy machine, and a launcher
    # waits for it. The role has returned: its files are closed and its threads are joined.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)

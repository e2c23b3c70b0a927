"""`python -m r1async`: tied to its launcher before anything slow is imported."""

import sys

from r1async.launch import lifeline

launched = lifeline.arm()

from r1async.cli import main  # noqa: E402  (after the lifeline: imports take a second that a parent may not live)

sys.exit(main(launched=launched))

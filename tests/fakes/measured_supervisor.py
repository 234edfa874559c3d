"""The real supervisor under coverage: ``measured_supervisor.py CONFIG DIR LOCK LIFE CONTROL``.

The real one gets the command's environment alone and no site packages, so coverage can't find its own way into it.
"""

import os
import sys
from pathlib import Path

import coverage

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    os.environ["COVERAGE_PROCESS_CONFIG"] = sys.argv[1]
    os.chdir(Path(__file__).parents[2])
    coverage.process_startup()
    del os.environ["COVERAGE_PROCESS_CONFIG"]

    from omnid.worker import supervisor

    supervisor.main(sys.argv[2:])

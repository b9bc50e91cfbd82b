"""What all tests share."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests share `tiny_models`

# Tiny models are fastest on one thread, and tests run in as many processes as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# The same examples every time, and no deadline: a loaded machine is not a failure.
settings.register_profile("reproducible", derandomize=True, deadline=None, print_blob=False, database=None)
settings.load_profile("reproducible")
